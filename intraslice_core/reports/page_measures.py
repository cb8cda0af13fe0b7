"""Tasks and loads on the page of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from intraslice_core.reports.chart import Chart, Point, Series, draw, linear_axis, log_axis
from intraslice_core.reports.formatting import Table, number, percent, size, times
from intraslice_core.reports.page_facts import PAIRED_RATIOS
from intraslice_core.reports.page_figures import Figure
from intraslice_core.reports.plots import LayerSpectrum, spectrum_plot
from intraslice_core.reports.schema import (
    BytesComparison,
    CompressionReport,
    LoadReport,
    PhaseComparison,
    SecondsComparison,
    TaskComparison,
)


def continuations(report: CompressionReport) -> Table | None:
    """What both models made of the prompts."""
    if report.evaluation is None or not report.evaluation.continuations:
        return None
    return Table(
        columns=("prompt", "dense", "compressed"),
        rows=tuple(
            (one.prompt, one.dense, one.compressed) for one in report.evaluation.continuations
        ),
        numeric=False,
    )


def verified(report: CompressionReport) -> Table | None:
    """Which files were loaded by whom, and how closely they agreed."""
    if not report.verified:
        return None
    return Table(
        columns=("files", "loaded by", "largest difference", "tolerance"),
        rows=tuple(
            (
                one.files,
                ", ".join(one.loaded_by),
                f"{one.max_abs_difference:.2g}",
                f"{one.tolerance:.2g}",
            )
            for one in report.verified
        ),
    )


def tasks(report: CompressionReport) -> Table | None:
    """Every metric of every task, dense against compressed."""
    if report.evaluation is None or not report.evaluation.tasks:
        return None
    return Table(
        columns=(
            *("task", "metric", "dense", "compressed", "compressed / dense"),
            *("better", "examples", "shots"),
        ),
        rows=tuple(_task_row(one) for one in report.evaluation.tasks),
    )


def _task_row(one: TaskComparison) -> tuple[str, ...]:
    return (
        one.task,
        one.metric,
        _score(one.dense, one.dense_stderr),
        _score(one.compressed, one.compressed_stderr),
        times(one.compressed / one.dense) if one.dense else "",
        "higher" if one.higher_is_better else "lower",
        f"{one.examples:,}",
        str(one.shots),
    )


def _score(value: float, stderr: float | None) -> str:
    return number(value) if stderr is None else f"{number(value)} ± {number(stderr)}"


def loads(report: CompressionReport) -> Table | None:
    """Every quantity under every load."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return None
    return Table(
        columns=("load", "quantity", "dense", "compressed", "compressed / dense"),
        rows=tuple(row for one in report.evaluation.speed_grid for row in _load_rows(one)),
    )


def loads_setting(report: CompressionReport) -> str:
    """How the loads were measured."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return ""
    first = report.evaluation.speed_grid[0]
    return (
        f"Both models in turns, {first.new_tokens} tokens decoded behind each prompt, medians over "
        f"{first.repeats} repeats; ± half of the interquartile range. Memory is the weights and "
        f"the most that a run took besides. {PAIRED_RATIOS}"
    )


def _load_rows(one: LoadReport) -> Iterator[tuple[str, ...]]:
    load = f"{one.batch_size} × {one.context_length:,} tokens"  # noqa: RUF001
    yield (load, "prefill, tokens/s", *_rates(one.prefill))
    yield (load, "decode, tokens/s", *_rates(one.decode))
    yield (load, "first token, ms", *_milliseconds(one.first_token))
    yield (load, "peak memory", *_sizes(one.peak_memory))
    yield (load, "KV cache a token", *_sizes(one.cache_per_token))


def _rates(one: PhaseComparison) -> tuple[str, str, str]:
    return (
        f"{one.dense:,.1f} ± {one.dense_spread / 2:,.1f}",
        f"{one.compressed:,.1f} ± {one.compressed_spread / 2:,.1f}",
        times(one.ratio),
    )


def _milliseconds(one: SecondsComparison) -> tuple[str, str, str]:
    return (
        f"{1000 * one.dense:,.1f} ± {500 * one.dense_spread:,.1f}",
        f"{1000 * one.compressed:,.1f} ± {500 * one.compressed_spread:,.1f}",
        times(one.ratio),
    )


def _sizes(one: BytesComparison) -> tuple[str, str, str]:
    return size(round(one.dense)), size(round(one.compressed)), times(one.ratio)


def speed_ups(report: CompressionReport) -> tuple[Figure, ...]:
    """Compressed over dense by context length, a series for each batch size."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return ()
    grid = report.evaluation.speed_grid
    return (
        _speed_up("Prefill", grid, lambda one: one.prefill.ratio),
        _speed_up("Decode", grid, lambda one: one.decode.ratio),
    )


def _speed_up(
    phase: str, grid: tuple[LoadReport, ...], ratio: Callable[[LoadReport], float]
) -> Figure:
    caption = f"{phase} speed of the compressed model over the dense model's: above 1 is faster."
    batches = sorted({one.batch_size for one in grid})
    series = tuple(
        Series(
            name=f"batches of {batch}",
            points=tuple(_point(one, ratio(one)) for one in grid if one.batch_size == batch),
        )
        for batch in batches
    )
    chart = Chart(
        title=f"{phase} speed-up by context length",
        description=caption,
        x=log_axis("context length, tokens", [float(one.context_length) for one in grid]),
        y=linear_axis("compressed / dense", [ratio(one) for one in grid], include=(1.0,)),
        series=series,
        style="dots",
    )
    table = Table(
        columns=("batch", "context length", "compressed / dense"),
        rows=tuple(
            (str(one.batch_size), f"{one.context_length:,}", times(ratio(one))) for one in grid
        ),
    )
    return Figure(title=chart.title, caption=caption, svg=draw(chart), table=table)


def _point(one: LoadReport, ratio: float) -> Point:
    text = f"{one.batch_size} prompts of {one.context_length:,} tokens: {times(ratio)}"
    return Point(x=one.context_length, y=ratio, text=text)


_MEASURES = {
    "eigenvalue": "Eigenvalues of the values' moment, weighted by what reads them",
    "loss": "Predicted loss of being the next to go",
    "score": "Scores that the method ranks by",
}
_TITLES = {
    "rotary pairs": "Rotary pairs",
    "value dims": "Value dims",
    "MLP neurons": "MLP neurons",
}
_HOW = (
    "a row a layer, darker by powers of ten; right of the cut is what was removed, in the other "
    "colour."
)


def spectra(report: CompressionReport) -> tuple[Figure, ...]:
    """A drawing for each dimension that was cut in any layer."""
    by_dimension: dict[str, list[LayerSpectrum]] = {}
    for one in _all(report):
        by_dimension.setdefault(one.spectrum.dimension, []).append(one)
    return tuple(
        _figure(_TITLES[name], by_dimension[name]) for name in _TITLES if name in by_dimension
    )


def _all(report: CompressionReport) -> Iterator[LayerSpectrum]:
    for one in report.layers:
        for module in (one.attention, one.mlp):
            for spectrum in module.spectra:
                yield LayerSpectrum(layer=one.layer, spectrum=spectrum)


def _figure(title: str, layers: list[LayerSpectrum]) -> Figure:
    measure = _MEASURES[layers[0].spectrum.measure]
    shares = [one.spectrum.kept_share for one in layers]
    caption = f"{measure}: {_HOW}"
    words = f"{caption} Layers keep {percent(min(shares))} to {percent(max(shares))} of the sum."
    return Figure(
        title=f"{title}: spectrum and cut",
        caption=caption,
        svg=spectrum_plot(f"{title}: spectrum and cut by layer", words, layers),
        table=Table(
            columns=("layer", "kept", "of", "share of the sum"),
            rows=tuple(
                (
                    str(one.layer),
                    f"{one.spectrum.kept:,}",
                    f"{one.spectrum.size:,}",
                    percent(one.spectrum.kept_share),
                )
                for one in layers
            ),
        ),
    )
