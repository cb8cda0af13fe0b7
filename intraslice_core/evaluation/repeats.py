"""What paired repeats of two models say: medians, spreads, and the median of their ratios."""

from __future__ import annotations

import statistics

from intraslice_core.reports.schema import PhaseComparison, SecondsComparison


def compared_rates(dense: list[float], compressed: list[float], tokens: int) -> PhaseComparison:
    """Seconds of the repeats, which are paired, as tokens/s."""
    dense_rates = [tokens / seconds for seconds in dense]
    compressed_rates = [tokens / seconds for seconds in compressed]
    return PhaseComparison(
        dense=statistics.median(dense_rates),
        compressed=statistics.median(compressed_rates),
        dense_spread=_spread(dense_rates),
        compressed_spread=_spread(compressed_rates),
        ratio=_paired_ratio(dense_rates, compressed_rates),
    )


def compared_seconds(dense: list[float], compressed: list[float]) -> SecondsComparison:
    """Seconds of the repeats, which are paired."""
    return SecondsComparison(
        dense=statistics.median(dense),
        compressed=statistics.median(compressed),
        dense_spread=_spread(dense),
        compressed_spread=_spread(compressed),
        ratio=_paired_ratio(dense, compressed),
    )


def _paired_ratio(dense: list[float], compressed: list[float]) -> float:
    """The median of the repeats' ratios: what slows one repeat slows both models in it."""
    return statistics.median(ours / theirs for ours, theirs in zip(compressed, dense, strict=True))


def _spread(values: list[float]) -> float:
    """Interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
