"""The words and numbers of a page: what was asked, what came out, what to be wary of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from intraslice_core.config import CompressionConfig
from intraslice_core.reports.formatting import (
    Table,
    change,
    count,
    duration,
    number,
    percent,
    size,
    times,
)
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.schema import (
    AllocationReport,
    CompressionReport,
    PerplexityComparison,
    PhaseComparison,
    RecoveryReport,
    SpeedReport,
)
from intraslice_core.text_sources import IN_DOMAIN_ONLY_WARNING, domain_of

Facts = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number to be seen first."""

    name: str
    value: str
    note: str


def tiles(report: CompressionReport) -> list[Tile]:
    """Size, quality and speed; what was not measured has none."""
    shown = [
        Tile(
            name="Parameters",
            value=change(report.params_before, report.params_after),
            note=f"{count(report.params_before)} → {count(report.params_after)}",
        ),
        Tile(
            name="Bytes of weights",
            value=change(report.bytes_before, report.bytes_after),
            note=f"{size(report.bytes_before)} → {size(report.bytes_after)}",
        ),
    ]
    evaluation = report.evaluation
    if evaluation is not None and evaluation.perplexity:
        shown.append(_perplexity_tile(evaluation.perplexity))
    if evaluation is not None and evaluation.speed is not None:
        whole = evaluation.speed.whole
        phases = f"prefill {times(whole.prefill.ratio)}, decode {times(whole.decode.ratio)}"
        shown.append(Tile(name="Tokens/s", value=times(whole.decode.ratio), note=phases))
    return shown


def _perplexity_tile(scored: tuple[PerplexityComparison, ...]) -> Tile:
    worst = max(scored, key=lambda one: one.ratio)
    among = f", the worst of {len(scored)} texts" if len(scored) > 1 else ""
    note = f"{number(worst.dense)} → {number(worst.compressed)} on {_last_part(worst.text)}{among}"
    return Tile(name="Perplexity", value=times(worst.ratio), note=note)


def cautions(page: ReportPage) -> list[str]:
    """Whatever speaks against trusting the result, before all figures."""
    report = page.report
    evaluation, allocation = report.evaluation, report.allocation
    found = [_sentence(warning) for warning in report.warnings]
    if IN_DOMAIN_ONLY_WARNING in report.warnings:
        at = report.warnings.index(IN_DOMAIN_ONLY_WARNING)
        found[at] += " Evaluate it on out-of-domain text, too."
    if allocation is not None and allocation.fallback_reason is not None:
        found.append(
            f"The shapes are those of {allocation.allocator}, not of {allocation.requested} as "
            f"asked for: {allocation.fallback_reason}."
        )
    if evaluation is None or not (evaluation.perplexity or evaluation.tasks):
        found.append("Quality was not measured: nothing is known of what was lost.")
    if page.job is not None and page.job.expired_at is not None:
        found.append("The files were removed when their time had passed; this report is left.")
    return found


def summary(page: ReportPage) -> Facts:
    """What was done, in a dozen lines."""
    report = page.report
    facts = [
        ("Model", page.model),
        ("Asked for", _asked(report.config)),
        ("Removed", f"{percent(report.removed_fraction)} of the compressible parameters"),
        ("Parameters", f"{report.params_before:,} → {report.params_after:,}"),
        ("Bytes of weights", f"{report.bytes_before:,} → {report.bytes_after:,}"),
        ("Method", report.method),
    ]
    if report.allocation is not None:
        facts.append(("Shapes chosen by", _allocator(report.allocation)))
        facts += _cost_of_target(report.config.target, report.allocation)
    facts += [("Calibrated on", _calibration(report)), ("Took", _took(report))]
    if report.device is not None:
        facts.append(("Machine", report.device))
    if report.peak_memory_bytes is not None:
        facts.append(("Peak memory", size(report.peak_memory_bytes)))
    if page.job is not None and page.job.labels:
        labels = ", ".join(f"{name} = {value}" for name, value in page.job.labels.items())
        facts.append(("Labels", labels))
    return facts


def provenance(page: ReportPage) -> Facts:
    """Which run it was, on what, by which program."""
    report, job = page.report, page.job
    facts = [
        ("IntraSlice", report.engine_version),
        ("Report schema", str(report.schema_version)),
        ("Licence of the base model", report.base_licence or "not found in its files"),
        ("Base model, SHA-256", report.base_fingerprint or "not recorded"),
        ("Calibration hash", report.calibration_hash),
        ("Calibration tokens", f"{report.calibration_tokens:,}"),
    ]
    if report.device is not None:
        facts.append(("Machine", report.device))
    if job is not None:
        facts += [("Job", job.id), ("Attempt", str(job.attempt))]
        facts += [
            (name, moment.isoformat(timespec="seconds"))
            for name, moment in (
                ("Created", job.created_at),
                ("Started", job.started_at),
                ("Finished", job.finished_at),
            )
            if moment is not None
        ]
    return facts


def settings(page: ReportPage) -> Table:
    """Every setting by its dotted name, defaults included."""
    rows = list(_flat("compression", page.report.config.model_dump(mode="json")))
    measured = page.report.evaluation.config if page.report.evaluation else None
    if measured is None and page.job is not None:
        measured = page.job.evaluation
    if measured is not None:
        rows += _flat("evaluation", measured.model_dump(mode="json"))
    return Table(columns=("setting", "value"), rows=(("model", page.model), *rows), numeric=False)


def files(page: ReportPage) -> Table | None:
    """What was published, with digests."""
    if not page.files:
        return None
    rows = tuple((one.name, size(one.bytes), one.sha256) for one in page.files)
    return Table(columns=("file", "size", "SHA-256"), rows=rows, numeric=False)


def quality(report: CompressionReport) -> Table | None:
    """Return the perplexity on each text; in-domain texts give optimistic values."""
    if report.evaluation is None or not report.evaluation.perplexity:
        return None
    calibrated = {domain_of(one.source) for one in report.config.calibration.mixture}
    return Table(
        columns=(
            *("text", "dense", "compressed", "compressed / dense"),
            *("tokens", "context", "calibrated on this kind"),
        ),
        rows=tuple(
            (
                one.text,
                number(one.dense),
                number(one.compressed),
                times(one.ratio),
                f"{one.tokens:,}",
                f"{one.context_length:,}",
                "yes" if domain_of(one.text) in calibrated else "no",
            )
            for one in report.evaluation.perplexity
        ),
    )


def recovery(report: CompressionReport) -> Table | None:
    """Perplexity before and after the training, on sequences held back from it."""
    if report.recovery is None:
        return None
    found = report.recovery.held_out
    recovered = found.recovered
    return Table(
        columns=("dense", "compressed", "recovered", "won back, of the log", "tokens"),
        rows=(
            (
                *(number(value) for value in (found.dense, found.before, found.after)),
                "" if recovered is None else percent(recovered),
                f"{found.tokens:,}",
            ),
        ),
    )


def recovery_setting(trained: RecoveryReport) -> str:
    """How it was trained, and what the figures are of."""
    aim = {"distill": "be as the dense model", "ce": "predict the next token"}[trained.config.loss]
    return (
        f"Trained to {aim}: {trained.tokens:,} tokens, {trained.steps:,} steps, "
        f"{duration(trained.seconds)}, ended by its {trained.stopped_by}; adapters of rank "
        f"{trained.config.rank}, merged. Perplexity on sequences of the training's text that were "
        "held back from it."
    )


def speed(report: CompressionReport) -> Table | None:
    """Tokens/s by part and phase; a part that was removed has none."""
    if report.evaluation is None or report.evaluation.speed is None:
        return None
    return Table(
        columns=("part", "phase", "dense, tokens/s", "compressed, tokens/s", "speed-up"),
        rows=tuple(_speed_rows(report.evaluation.speed)),
    )


PAIRED_RATIOS = (
    "Both models ran in turns: the speed-up is the median of each turn's ratio, and so need "
    "not be the ratio of the two medians."
)


def speed_setting(measured: SpeedReport) -> str:
    """Under which load the speed was measured."""
    return (
        f"Batches of {measured.batch_size}, prompts of {measured.prompt_tokens:,} tokens, "
        f"{measured.new_tokens:,} new ones, medians over {measured.repeats} repeats; "
        f"± half of the interquartile range. {PAIRED_RATIOS}"
    )


def _speed_rows(measured: SpeedReport) -> Iterator[tuple[str, ...]]:
    parts = {
        "whole model": measured.whole,
        "decoder layers": measured.layers,
        "attention": measured.attention,
        "MLP": measured.mlp,
    }
    for name, part in parts.items():
        if part is not None:
            yield (name, "prefill", *_phase(part.prefill))
            yield (name, "decode", *_phase(part.decode))


def _phase(phase: PhaseComparison) -> tuple[str, str, str]:
    return (
        f"{phase.dense:,.1f} ± {phase.dense_spread / 2:,.1f}",
        f"{phase.compressed:,.1f} ± {phase.compressed_spread / 2:,.1f}",
        times(phase.ratio),
    )


def _asked(config: CompressionConfig) -> str:
    if config.target_params is not None:
        return f"{config.target_params:,} parameters in all"
    if config.target_bytes is not None:
        return f"{config.target_bytes:,} bytes of weights"
    return f"{percent(config.ratio or 0.0)} of the compressible parameters removed"


def _cost_of_target(target: str, allocation: AllocationReport) -> list[tuple[str, str]]:
    """What the target's constraints cost, where that was tried."""
    free, bound = allocation.unconstrained_calibration_loss, allocation.calibration_loss
    if allocation.fell_back:
        bound = allocation.uniform_calibration_loss
    if free is None or bound is None:
        return []
    told = f"{bound - free:+.3f} nats a token against free shapes, as rehearsed"
    return [(f"Target {target} costs", told)]


def _allocator(allocation: AllocationReport) -> str:
    if allocation.requested in (allocation.allocator, "auto") and not allocation.fell_back:
        return allocation.allocator
    return f"{allocation.allocator} (asked for: {allocation.requested})"


def _calibration(report: CompressionReport) -> str:
    mixture = report.config.calibration.mixture
    names = ", ".join(
        _last_part(one.source) + (f" (weight {one.weight:g})" if len(mixture) > 1 else "")
        for one in mixture
    )
    return f"{report.calibration_tokens:,} tokens of {names}"


def _took(report: CompressionReport) -> str:
    resumed = report.resumed_layers
    if not resumed:
        return duration(report.seconds)
    return f"{duration(report.seconds)}, {resumed} layers finished by an earlier run not counted"


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _last_part(source: str) -> str:
    """Of a path; the rest is long, and private."""
    return source.rsplit("/", 1)[-1]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
