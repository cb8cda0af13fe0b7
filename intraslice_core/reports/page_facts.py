"""Facts and tables of the report page: request, results, warnings, settings and provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from intraslice_core.config import CompressionConfig
from intraslice_core.reports.formatting import Table
from intraslice_core.reports.page_contents import JobFacts, ReportPage
from intraslice_core.reports.quantities import (
    duration,
    mean_and_error,
    number,
    percent,
    size,
    times,
)
from intraslice_core.reports.references import (
    local_references,
    public_reference,
    public_settings,
    text_name,
    without_paths,
)
from intraslice_core.reports.schema import (
    AllocationReport,
    CompressionReport,
    PerplexityComparison,
    PhaseComparison,
    RecoveryReport,
    SpeedReport,
)
from intraslice_core.text_sources import (
    DOMAIN_NAMES,
    IN_DOMAIN_ONLY_WARNING,
    WEB,
    WEB_DATASET,
    Domain,
    domain_of,
)

Facts = list[tuple[str, str]]


def cautions(page: ReportPage) -> list[str]:
    """Return the warnings that are shown before all figures."""
    report = page.report
    allocation, paths = report.allocation, local_references(report)
    sentences = [_sentence(without_paths(warning, paths)) for warning in report.warnings]
    if IN_DOMAIN_ONLY_WARNING in report.warnings:
        index = report.warnings.index(IN_DOMAIN_ONLY_WARNING)
        sentences[index] += " Evaluate on out-of-domain text, too."
    if allocation is not None and allocation.fallback_reason is not None:
        sentences.append(
            f"Allocated by {allocation.allocator} instead of the requested "
            f"{allocation.requested}: {without_paths(allocation.fallback_reason, paths)}."
        )
    if page.job is not None and page.job.expired_at is not None:
        sentences.append("The job's files have expired and were deleted; this report remains.")
    return sentences


def _layers(report: CompressionReport) -> Facts:
    """Return the numbers of decoder layers before and after, if layers were removed."""
    before, after = len(report.plan.layers), len(report.plan.remaining)
    return [] if before == after else [("Decoder layers", f"{before} → {after}")]


def _residual(report: CompressionReport) -> Facts:
    """Return the widths of the residual stream before and after, if it was sliced."""
    if not report.plan.slices_residual:
        return []
    streams = [layer.residual for layer in report.plan.layers if layer.residual is not None]
    widths = sorted({width for stream in streams for width in (stream.attention, stream.mlp)})
    sizes = " or ".join(f"{width:,}" for width in widths)
    return [("Residual stream", f"{report.geometry.hidden_size:,} → {sizes}, with shortcuts")]


def subtitle(report: CompressionReport) -> str:
    """Return the line below the title: what was removed, how, and where the result runs."""
    whole = percent(1.0 - report.params_after / report.params_before)
    layers = percent(report.removed_fraction)
    parts = [f"{whole} smaller: {layers} of the layers' weights removed by {report.method}"]
    if report.runtimes:
        parts.append(f"runs in {'; '.join(report.runtimes)}")
    return " · ".join(parts)


def removed(report: CompressionReport) -> str:
    """Return what was removed: of the whole model, and of the layers' weights."""
    whole = 1.0 - report.params_after / report.params_before
    return (
        f"{percent(whole)} of the model: {percent(report.removed_fraction)} of the layers' weights"
    )


def summary(page: ReportPage) -> Facts:
    """Return the main facts about the compression."""
    report = page.report
    facts = [
        ("Model", page.model),
        ("Requested", _budget(report.config)),
        ("Removed", removed(report)),
        *_layers(report),
        *_residual(report),
        ("Parameters", f"{report.params_before:,} → {report.params_after:,}"),
        ("Weight size in bytes", f"{report.bytes_before:,} → {report.bytes_after:,}"),
        ("Method", _method(report)),
    ]
    if report.runtimes:
        facts.append(("Runs in", "; ".join(report.runtimes)))
    if report.allocation is not None:
        facts.append(("Allocation", _allocator(report.allocation)))
        facts += _fast_shapes(report.allocation)
        facts += _cost_of_target(report.config.target, report.allocation)
    facts += [("Calibration", _calibration(report)), ("Duration", _duration(report))]
    if report.device is not None:
        facts.append(("Device", report.device))
    if report.peak_memory_bytes is not None:
        facts.append(("Peak memory", size(report.peak_memory_bytes)))
    if page.job is not None and page.job.labels:
        labels = ", ".join(f"{name} = {value}" for name, value in page.job.labels.items())
        facts.append(("Labels", labels))
    return facts


def _method(report: CompressionReport) -> str:
    return f"{report.method}, chosen by auto" if report.tournament else report.method


def provenance(page: ReportPage) -> Facts:
    """Return the versions, hashes and job that identify the run."""
    report, job = page.report, page.job
    facts = [
        ("IntraSlice", report.engine_version),
        ("Report schema", str(report.schema_version)),
        ("Licence of the base model", report.base_licence or "not stated in its files"),
        ("Base model, SHA-256", report.base_fingerprint or "not recorded"),
        ("Calibration hash", report.calibration_hash),
        ("Calibration tokens", f"{report.calibration_tokens:,}"),
    ]
    if report.device is not None:
        facts.append(("Device", report.device))
    return facts if job is None else facts + _job_facts(job)


def _job_facts(job: JobFacts) -> Facts:
    moments = (
        ("Created", job.created_at),
        ("Started", job.started_at),
        ("Finished", job.finished_at),
    )
    return [
        ("Job", job.id),
        ("Attempt", str(job.attempt)),
        *(
            (name, moment.isoformat(timespec="seconds"))
            for name, moment in moments
            if moment is not None
        ),
        *([("Time worked", duration(job.worked_seconds))] if job.worked_seconds else []),
    ]


def settings(page: ReportPage) -> Table:
    """Return every setting by its dotted name, including defaults."""
    paths = local_references(page.report)
    config = public_settings(page.report.config.model_dump(mode="json"), paths)
    rows = list(_flatten("compression", config))
    evaluation = page.report.evaluation.config if page.report.evaluation else None
    if evaluation is None and page.job is not None:
        evaluation = page.job.evaluation
    if evaluation is not None:
        rows += _flatten("evaluation", public_settings(evaluation.model_dump(mode="json"), paths))
    return Table(columns=("setting", "value"), rows=(("model", page.model), *rows), numeric=False)


def files(page: ReportPage) -> Table | None:
    """Return the published files with their digests."""
    if not page.files:
        return None
    rows = tuple((file.name, size(file.bytes), file.sha256) for file in page.files)
    return Table(columns=("file", "size", "SHA-256"), rows=rows, numeric=False)


def quality(report: CompressionReport) -> Table | None:
    """Return perplexity, divergence and domain of each text."""
    if report.evaluation is None or not report.evaluation.perplexity:
        return None
    seen = report.config.seen_sources
    return Table(
        columns=(
            *("text", "domain", "dense perplexity", "compressed", "compressed / dense"),
            *("KL, nats/token", "top-1 agreement", "tokens", "context length"),
        ),
        rows=tuple(
            # Reports of earlier versions name no domain.
            _quality_row(text, text.domain or domain_of(text.text, seen))
            for text in report.evaluation.perplexity
        ),
    )


def _quality_row(text: PerplexityComparison, domain: Domain) -> tuple[str, ...]:
    return (
        text_name(text.text),
        DOMAIN_NAMES[domain],
        number(text.dense),
        number(text.compressed),
        times(text.ratio),
        "" if text.kl is None else mean_and_error(text.kl, text.kl_stderr),
        "" if text.top1_agreement is None else percent(text.top1_agreement),
        f"{text.tokens:,}",
        f"{text.context_length:,}" + (", first BOS" if text.begins_with_bos else ""),
    )


def recovery(report: CompressionReport) -> Table | None:
    """Return the perplexity before and after fine-tuning, on held-out sequences."""
    if report.recovery is None:
        return None
    held_out = report.recovery.held_out
    recovered = held_out.recovered
    return Table(
        columns=("dense", "compressed", "fine-tuned", "recovered log-perplexity", "tokens"),
        rows=(
            (
                *(number(value) for value in (held_out.dense, held_out.before, held_out.after)),
                "" if recovered is None else percent(recovered),
                f"{held_out.tokens:,}",
            ),
        ),
    )


_LOSSES = {
    "ce": "cross-entropy of the text",
    "distill": "distillation from the dense model",
    "hidden": "the error of the hidden states",
}


def recovery_setting(recovery: RecoveryReport) -> str:
    """Describe the fine-tuning and its measurement."""
    config = recovery.config
    limit = {"tokens": "token limit", "time": "time limit"}
    weights = config.loss_weights.model_dump()
    losses = " and ".join(
        f"{_LOSSES[name]}" + ("" if name == config.loss else f" (weight {weight:g})")
        for name, weight in sorted(weights.items(), key=lambda item: item[0] != config.loss)
        if weight > 0.0
    )
    trained = {
        "none": "all weights",
        "lora": f"LoRA adapters of rank {config.rank}, merged",
        "dora": f"DoRA adapters of rank {config.rank}, merged",
    }
    return (
        f"Fine-tuned by {losses}: {recovery.tokens:,} tokens, "
        f"{recovery.steps:,} steps, {duration(recovery.seconds)}, stopped at the "
        f"{limit[recovery.stopped_by]}; {trained[config.adapter]}. "
        "Perplexity is measured on sequences held out from the fine-tuning text."
    )


def speed(report: CompressionReport) -> Table | None:
    """Return the speed in tokens/s by part and phase; removed parts are skipped."""
    if report.evaluation is None or report.evaluation.speed is None:
        return None
    return Table(
        columns=("part", "phase", "dense, tokens/s", "compressed, tokens/s", "speed-up"),
        rows=tuple(_speed_rows(report.evaluation.speed)),
    )


PAIRED_RATIOS = (
    "Both models alternate, and the speed-up is the median of the repeats' ratios, so it may "
    "differ from the ratio of the two medians."
)


def speed_setting(speed: SpeedReport) -> str:
    """Describe the load under which the speed was measured."""
    return (
        f"Batch size {speed.batch_size}, prompts of {speed.prompt_tokens:,} tokens, "
        f"{speed.new_tokens:,} decoded tokens; medians over {speed.repeats} repeats ± half of the "
        f"interquartile range. {PAIRED_RATIOS}"
    )


def _speed_rows(speed: SpeedReport) -> Iterator[tuple[str, ...]]:
    parts = {
        "whole model": speed.whole,
        "decoder layers": speed.layers,
        "attention": speed.attention,
        "MLP": speed.mlp,
    }
    for name, part in parts.items():
        if part is not None:
            yield (name, "prompt processing", *phase_cells(part.prefill))
            yield (name, "generation", *phase_cells(part.decode))


def phase_cells(phase: PhaseComparison) -> tuple[str, str, str]:
    """Return the dense and the compressed speed with their spread, and the speed-up."""
    return (
        f"{phase.dense:,.1f} ± {phase.dense_spread / 2:,.1f}",
        f"{phase.compressed:,.1f} ± {phase.compressed_spread / 2:,.1f}",
        times(phase.ratio),
    )


def _budget(config: CompressionConfig) -> str:
    if config.target_params is not None:
        return f"{config.target_params:,} parameters in total"
    if config.target_bytes is not None:
        return f"{config.target_bytes:,} bytes of weights"
    return f"{percent(config.ratio or 0.0)} of the layers' weights removed"


def _cost_of_target(target: str, allocation: AllocationReport) -> list[tuple[str, str]]:
    """Return the loss increase due to the target's constraints, if it was measured."""
    free, constrained = allocation.unconstrained_calibration_loss, allocation.calibration_loss
    if allocation.fell_back:
        constrained = allocation.uniform_calibration_loss
    if free is None or constrained is None:
        return []
    cost = (
        f"{constrained - free:+.3f} nats per token compared with unconstrained shapes, "
        "measured by trial compressions"
    )
    return [(f"Cost of target {target}", cost)]


def _fast_shapes(allocation: AllocationReport) -> list[tuple[str, str]]:
    """Return the multiple of the MLP widths and its cost, if fast shapes were preferred."""
    preference = allocation.fast_shapes
    if preference is None:
        return []
    if preference.multiple is None:
        return [("Fast shapes", "not used, because they cost too much")]
    text = f"MLP widths in multiples of {preference.multiple}"
    if preference.extra_loss is not None:
        text += f", predicted loss {preference.extra_loss:+.4f} nats per token"
    return [("Fast shapes", text)]


def _allocator(allocation: AllocationReport) -> str:
    if allocation.requested in (allocation.allocator, "auto") and not allocation.fell_back:
        return allocation.allocator
    return f"{allocation.allocator} (requested: {allocation.requested})"


def _calibration(report: CompressionReport) -> str:
    mixture = report.config.resolved_calibration.mixture
    names = ", ".join(
        _source_name(part.source) + (f" (weight {part.weight:g})" if len(mixture) > 1 else "")
        for part in mixture
    )
    begin = ", each sequence begins with BOS" if report.begins_with_bos else ""
    return f"{report.calibration_tokens:,} tokens of {names}{begin}"


def _duration(report: CompressionReport) -> str:
    resumed = report.resumed_layers
    if not resumed:
        return duration(report.seconds)
    return f"{duration(report.seconds)}, without {resumed} layers finished by an earlier run"


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(f"{name}.{key}", item)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _source_name(source: str) -> str:
    return f"{WEB} from {WEB_DATASET}" if source == WEB else public_reference(source)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
