"""Key figures at the top of a report: size, worst perplexity, generation speed, serving memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from intraslice_core.reports.quantities import count, number, short_change, size, times
from intraslice_core.reports.references import text_name
from intraslice_core.reports.schema import CompressionReport, PartSpeed, SpeedReport
from intraslice_core.reports.serving_memory import serving_memory
from intraslice_core.reports.verdict import ScoredText, Tone, scored_texts, verdict, worst_text

_SAME_SPEED = 0.02
"""Difference from the original's speed that is neither faster nor slower."""


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """Figure of the result, with that of the original and the difference."""

    name: str
    value: str
    original: str
    delta: str
    tone: Tone | None = None
    """Colour of the difference; None for a neutral one."""
    note: str = ""


def key_figures(report: CompressionReport) -> list[KeyFigure]:
    """Return the key figures, as far as they were measured."""
    figures = [_size(report)]
    worst = worst_text(scored_texts(report))
    if worst is not None:
        figures.append(_perplexity(worst))
    if report.evaluation is not None and report.evaluation.speed is not None:
        figures.append(_speed(report.evaluation.speed))
    figures.append(_memory(report))
    return figures


def _size(report: CompressionReport) -> KeyFigure:
    ratio = report.bytes_after / report.bytes_before
    parameters = f"{count(report.params_before)} → {count(report.params_after)} parameters"
    return KeyFigure(
        name="Size on disk",
        value=size(report.bytes_after),
        original=size(report.bytes_before),
        delta=short_change(ratio),
        tone="ok" if ratio < 1.0 else None,
        note=parameters,
    )


def _perplexity(worst: ScoredText) -> KeyFigure:
    kind = {"in": "calibration text", "out": "unseen text"}.get(worst.domain or "", "text")
    return KeyFigure(
        name=f"Perplexity, worst {kind}",
        value=number(worst.compressed),
        original=number(worst.dense),
        delta=short_change(worst.ratio),
        tone=verdict([worst], ()).tone,
        note=text_name(worst.name),
    )


def _speed(speed: SpeedReport) -> KeyFigure:
    phase = speed.whole.decode
    return KeyFigure(
        name=f"Generation, batch {speed.batch_size}",
        value=f"{number(phase.compressed)} tok/s",
        original=f"{number(phase.dense)} tok/s",
        delta=times(phase.ratio),
        tone=_speed_tone(speed.whole),
        note=f"prompt processing {times(speed.whole.prefill.ratio)}",
    )


def _speed_tone(speed: PartSpeed) -> Tone | None:
    ratio = speed.decode.ratio
    if abs(ratio - 1.0) <= _SAME_SPEED:
        return None
    return "ok" if ratio > 1.0 else "bad"


def _memory(report: CompressionReport) -> KeyFigure:
    memory = serving_memory(report)
    return KeyFigure(
        name=f"Memory to serve, {memory.context_tokens:,} tokens",
        value=size(memory.compressed),
        original=size(memory.dense),
        delta=short_change(memory.ratio),
        tone="ok" if memory.ratio < 1.0 else None,
        note=f"weights and KV cache, batch {memory.batch_size}",
    )


def summary_lines(report: CompressionReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, original, compressed and difference of each key figure, for text output."""
    for figure in key_figures(report):
        yield figure.name, figure.original, figure.value, figure.delta
