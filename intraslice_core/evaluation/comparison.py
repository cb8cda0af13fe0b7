"""Comparison of the dense and the compressed model: quality, then speed.

Quality needs one model in memory at a time, speed needs both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from intraslice_core.calibration import text_prefix
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.config import EvaluationConfig, GateConfig
from intraslice_core.device import HostMemory
from intraslice_core.device_memory import out_of_memory_reported
from intraslice_core.errors import NumericalError, QualityGateError
from intraslice_core.evaluation.divergence import Divergence
from intraslice_core.evaluation.overlap import SeenNgrams
from intraslice_core.evaluation.progress import part_ends, progress_of
from intraslice_core.evaluation.saved_scores import SavedScores
from intraslice_core.evaluation.scoring import DenseScores, ModelScores, Scorer, load_texts
from intraslice_core.evaluation.speeds import compare_speeds_apart
from intraslice_core.evaluation.tasks import OpenedTasks, TaskScore, open_tasks
from intraslice_core.evaluation.texts import require_known_texts
from intraslice_core.families.positions import learned_positions, require_lengths
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
)
from intraslice_core.reports.schema import (
    ContinuationComparison,
    EvaluationReport,
    PerplexityComparison,
    TaskComparison,
)
from intraslice_core.text_sources import TOLERATED_OVERLAP, Domain, domain_of
from intraslice_core.tokenizer import embedding_rows, load_tokenizer

_GATE_HINT = "request a lower ratio or more calibration text"

OUTPUT_MEMORY_BYTES = 2**29
"""Memory for the dense model's outputs; further ones are kept in unnamed temporary files."""


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Optional inputs of a comparison, for callers that already have them."""

    tasks: OpenedTasks | None = None
    """Opened tasks of the settings; opened here if not given."""
    calibration: Tensor | None = None
    """Calibration sequences, (samples, sequence_length); texts are checked for overlap with it."""
    seen_sources: tuple[str, ...] | None = None
    """Sources of the calibration and fine-tuning text, which decide the texts' domains."""
    dense_scores: DenseScores | None = None
    """Cache of the dense model's scores, read and filled."""
    memory: HostMemory = field(default_factory=HostMemory)
    """Storage of the dense model's outputs, from which divergences are computed."""
    saved: SavedScores | None = None
    """Scores of an interrupted evaluation, read and extended; None saves nothing."""
    speed_device: str | None = None
    """Device on which speeds are measured; that of the scores by default."""
    seconds: tuple[float, float, float] | None = None
    """Expected seconds of scoring the dense model, of scoring the compressed one and of measuring
    speeds, for progress; None for typical ones."""


NO_MATERIALS = Materials()


@out_of_memory_reported("evaluation.context_length")
def evaluate_pair(  # noqa: PLR0913  # one call is the whole comparison
    dense_dir: Path,
    compressed_dir: Path,
    config: EvaluationConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    materials: Materials = NO_MATERIALS,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> EvaluationReport:
    """Measure both models on the same tokens and the same machine.

    The dense model writes the texts `self` and `chat` once, and both models are scored on them.
    Progress fractions are of the evaluation, in [0, 1].

    Raises:
        ConfigurationError: if a window is longer than the model's table of learned positions.
        QualityGateError: if the compressed model is worse than the gate allows.
        CalibrationSourceError: if a text cannot be read or written.
        TokenizerError: if the tokenizer cannot be loaded or does not fit the embedding.
        TaskError: if a task cannot be measured.
        MeasurementError: if the speed cannot be measured.
        OutOfDeviceMemoryError: if the device has too little memory.
        CompressionCancelledError: if the run is cancelled.
    """
    _require_lengths(dense_dir, config)
    scorer = Scorer(
        config=config,
        tasks=materials.tasks or open_requested_tasks(config),
        dtype=dtype,
        device=device,
        should_cancel=should_cancel,
        saved=materials.saved,
    )
    directories = (dense_dir, compressed_dir)
    ends = part_ends(materials.seconds, measures_speed=_measures_speed(config))
    report = _compare_quality(scorer, directories, materials, on_progress, ends)
    if config.gate is not None:
        check_gate(report.perplexity, report.tasks, config.gate)
    if _measures_speed(config):
        message = "measuring the speed of both models"
        on_progress(ProgressEvent(stage=Stage.EVALUATE, message=message, fraction=ends[1]))
        compute = (dtype, materials.speed_device or device)
        speed, loads = compare_speeds_apart(*directories, config, compute, should_cancel)
        report = report.model_copy(update={"speed": speed, "speed_grid": loads})
    on_progress(ProgressEvent(stage=Stage.EVALUATE, message="evaluation finished", fraction=1.0))
    return report


def _measures_speed(config: EvaluationConfig) -> bool:
    return config.benchmark or bool(config.speed_grid)


def _compare_quality(
    scorer: Scorer,
    directories: tuple[Path, Path],
    materials: Materials,
    on_progress: ProgressListener,
    ends: tuple[float, float],
) -> EvaluationReport:
    """Score the dense model, unless its scores are cached, and the compressed model.

    Outputs of the dense model that the caller does not cache are freed on return. `ends` are the
    finished fractions after each model's scores (`part_ends`).
    """
    config = scorer.config
    cache = materials.dense_scores or DenseScores()
    dense = cache.get(_settings_key(config, scorer.dtype))
    if dense is None:
        report = progress_of(on_progress, 0, ends)
        dense = scorer.score_dense(directories[0], cache, materials.memory, report)
    report = progress_of(on_progress, 1, ends)
    compressed, divergences = scorer.score_compressed(directories[1], cache, report)
    return EvaluationReport(
        config=config,
        perplexity=_compare_texts(config, cache, (dense, compressed), divergences, materials),
        tasks=_compare_tasks(dense.tasks, compressed.tasks),
        continuations=_pair_continuations(config, dense, compressed),
    )


@out_of_memory_reported("evaluation.context_length")
def evaluate_one(
    directory: Path,
    config: EvaluationConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    tasks: OpenedTasks | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> ModelScores:
    """Measure one model's perplexity on every text and its scores in the requested tasks.

    Raises:
        ConfigurationError: if a window is longer than the model's table of learned positions.
        CalibrationSourceError: if a text cannot be read, or only the dense model could write it.
        TaskError: if a task cannot be measured.
        OutOfDeviceMemoryError: if the device has too little memory.
        CompressionCancelledError: if the run is cancelled.
    """
    _require_lengths(directory, config.model_copy(update={"benchmark": False, "speed_grid": ()}))
    scorer = Scorer(
        config=config,
        tasks=tasks or open_requested_tasks(config),
        dtype=dtype,
        device=device,
        should_cancel=should_cancel,
    )

    def report(message: str, fraction: float) -> None:
        on_progress(ProgressEvent(stage=Stage.EVALUATE, message=message, fraction=fraction))

    texts = load_texts(directory, config.perplexity, config, report)
    model = scorer.load(directory)
    tokenizer = load_tokenizer(directory)
    require_known_texts(tokenizer, embedding_rows(model), texts, config.prompts)
    return ModelScores(
        perplexity=scorer.score_texts(model, texts, text_prefix(tokenizer), {}, report),
        tasks=scorer.score_tasks(model, directory, report),
    )


def _require_lengths(directory: Path, config: EvaluationConfig) -> None:
    """Raise if a window or prompt is longer than the model's table of learned positions."""
    settings = read_json_object(directory / CONFIG_FILE)
    require_lengths(learned_positions(settings), None, config)


def open_requested_tasks(config: EvaluationConfig) -> OpenedTasks | None:
    """Open the settings' tasks and read their examples; return None without tasks.

    Raises:
        TaskError: if a task cannot be measured.
    """
    return open_tasks(config.tasks, limit=config.task_limit) if config.tasks else None


def check_gate(
    perplexities: tuple[PerplexityComparison, ...],
    tasks: tuple[TaskComparison, ...],
    gate: GateConfig,
) -> None:
    """Raise if the result is worse than the gate allows on any text or in any task.

    Raises:
        QualityGateError: with the text or the task, the ratio and the limit.
    """
    for text in perplexities:
        _check_text(text, gate.max_perplexity_ratio)
    for task in tasks:
        _check_task(task, gate.min_task_ratio)


def _check_text(text: PerplexityComparison, limit: float | None) -> None:
    # Written so that NaN fails too.
    if limit is not None and not text.ratio <= limit:
        raise QualityGateError(
            f"perplexity on {text.text} is {text.ratio:.3f} times the dense model's "
            f"({text.dense:.2f} to {text.compressed:.2f}); the gate allows at most {limit:.3f}",
            hint=_GATE_HINT,
        )


def _check_task(task: TaskComparison, limit: float | None) -> None:
    if limit is not None and not task.ratio >= limit:
        raise QualityGateError(
            f"{task.task} retains {task.ratio:.3f} of its {task.metric} "
            f"({task.dense:.3f} to {task.compressed:.3f}); the gate requires at least {limit:.3f}",
            hint=_GATE_HINT,
        )


def _settings_key(config: EvaluationConfig, dtype: str) -> str:
    """Return all settings on which the dense model's texts and scores depend."""
    settings = config.model_dump(exclude={"benchmark", "speed_grid", "gate"}, mode="json")
    return f"{settings} {dtype}"


def _compare_texts(
    config: EvaluationConfig,
    cache: DenseScores,
    scores: tuple[ModelScores, ModelScores],
    divergences: dict[str, Divergence],
    materials: Materials,
) -> tuple[PerplexityComparison, ...]:
    """Compare both models on every text, and the text with the calibration."""
    dense, compressed = (model.perplexity for model in scores)
    # No text contains the prefix of the calibration sequences, which therefore never overlaps.
    calibration = materials.calibration
    seen = None if calibration is None else SeenNgrams(calibration.cpu().numpy())
    comparisons = []
    for source in dict.fromkeys(config.perplexity):
        overlap = None if seen is None else seen.fraction_of(cache.texts[source].cpu().numpy())
        divergence = divergences.get(source)
        comparisons.append(
            PerplexityComparison(
                text=source,
                domain=_domain(source, overlap, materials.seen_sources),
                context_length=config.context_length,
                tokens=compressed[source].tokens_scored,
                dense=dense[source].perplexity,
                compressed=compressed[source].perplexity,
                kl=divergence and divergence.kl,
                kl_stderr=divergence and divergence.kl_stderr,
                top1_agreement=divergence and divergence.top1_agreement,
                calibration_overlap=overlap,
                begins_with_bos=bool(cache.prefix),
            )
        )
    return tuple(comparisons)


def _domain(
    source: str, overlap: float | None, seen_sources: tuple[str, ...] | None
) -> Domain | None:
    """Return the text's domain by its source and by its overlap with the calibration."""
    if overlap is not None and overlap > TOLERATED_OVERLAP:
        return "in"
    return None if seen_sources is None else domain_of(source, seen_sources)


def _compare_tasks(
    dense: tuple[TaskScore, ...], compressed: tuple[TaskScore, ...]
) -> tuple[TaskComparison, ...]:
    """Compare both models' scores; skip metrics that are not finite for the dense model.

    Raises:
        NumericalError: if a metric is not finite for the compressed model only.
    """
    by_metric = {(score.task, score.metric): score for score in compressed}
    missing = [score for score in dense if (score.task, score.metric) not in by_metric]
    if missing:
        raise NumericalError(
            f"the compressed model's {missing[0].metric} in task {missing[0].task} is not finite"
        )
    return tuple(_pair_scores(score, by_metric[score.task, score.metric]) for score in dense)


def _pair_scores(dense: TaskScore, compressed: TaskScore) -> TaskComparison:
    return TaskComparison(
        task=dense.task,
        metric=dense.metric,
        higher_is_better=dense.higher_is_better,
        examples=dense.examples,
        shots=dense.shots,
        dense=dense.value,
        compressed=compressed.value,
        dense_stderr=dense.stderr,
        compressed_stderr=compressed.stderr,
    )


def _pair_continuations(
    config: EvaluationConfig, dense: ModelScores, compressed: ModelScores
) -> tuple[ContinuationComparison, ...]:
    outputs = zip(config.prompts, dense.continuations, compressed.continuations, strict=True)
    return tuple(
        ContinuationComparison(prompt=prompt, dense=before, compressed=after)
        for prompt, before, after in outputs
    )
