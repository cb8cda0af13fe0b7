"""Comparison of the dense and the compressed model: quality, then speed.

Quality needs one model in memory at a time, speed needs both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.calibration import text_prefix
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.config import EvaluationConfig, GateConfig
from intraslice_core.device import advising_bfloat16, keeps_few_kernels
from intraslice_core.errors import MeasurementError, NumericalError, QualityGateError
from intraslice_core.evaluation import speed_process
from intraslice_core.evaluation.clean_process import PACKAGES_DIRECTORY, CleanProcess
from intraslice_core.evaluation.continuations import continuations
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.overlap import SeenNgrams
from intraslice_core.evaluation.perplexity import (
    PerplexityResult,
    evaluation_tokens,
    perplexity,
    written_tokens,
)
from intraslice_core.evaluation.tasks import OpenedTasks, TaskScore, open_tasks, score_tasks
from intraslice_core.evaluation.texts import require_known_texts
from intraslice_core.evaluation.timing import compare_speeds
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
    LoadReport,
    PerplexityComparison,
    SpeedReport,
    TaskComparison,
)
from intraslice_core.text_sources import WRITTEN
from intraslice_core.tokenizer import embedding_rows, load_tokenizer

_TOKENS_AT_ONCE = 4096
_PERPLEXITY_SHARE = 0.9
"""Share of the evaluation's progress that scoring takes when speed is measured too."""

_GATE_HINT = "request a lower ratio or more calibration text"

_Report = Callable[[str, float], None]
"""Callback for progress: a message and a fraction in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Scores of one model: perplexities by text, tasks, and continuations of the prompts."""

    perplexity: dict[str, PerplexityResult]
    tasks: tuple[TaskScore, ...]
    continuations: tuple[str, ...] = ()


@dataclass(kw_only=True)
class DenseScores:
    """Cache of one dense model's texts and scores, for comparisons with the same settings."""

    key: str = ""
    texts: dict[str, Tensor] = field(default_factory=dict)
    """Tokens of each text, without prefix."""
    prefix: tuple[int, ...] = ()
    """Tokens that every scored window begins with (`calibration.text_prefix`)."""
    scores: ModelScores | None = None

    def get(self, key: str) -> ModelScores | None:
        """Return the scores measured with these settings; clear the cache if there are none."""
        if self.key != key:
            self.key, self.texts, self.scores = key, {}, None
        return self.scores


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Optional inputs of a comparison, for callers that already have them."""

    tasks: OpenedTasks | None = None
    """Opened tasks of the settings; opened here if not given."""
    calibration: Tensor | None = None
    """Calibration sequences, (samples, sequence_length); texts are checked for overlap with it."""
    dense_scores: DenseScores | None = None
    """Cache of the dense model's scores, read and filled."""


NO_MATERIALS = Materials()


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
        CompressionCancelledError: if the run is cancelled.
    """
    _require_lengths(dense_dir, config)
    measures_speed = config.benchmark or bool(config.speed_grid)
    share = (_PERPLEXITY_SHARE if measures_speed else 1.0) / 2
    scorer = _Scorer(
        config=config,
        tasks=materials.tasks or open_requested_tasks(config),
        dtype=dtype,
        device=device,
        should_cancel=should_cancel,
    )
    cache = materials.dense_scores or DenseScores()
    dense = cache.get(_settings_key(config, dtype))
    if dense is None:
        dense = scorer.score_dense(dense_dir, cache, _progress_of(on_progress, 0, share))
    report = _progress_of(on_progress, 1, share)
    compressed = scorer.score_compressed(compressed_dir, cache, report)
    perplexities = _compare_texts(config, cache, (dense, compressed), materials.calibration)
    tasks = _compare_tasks(dense.tasks, compressed.tasks)
    if config.gate is not None:
        check_gate(perplexities, tasks, config.gate)
    speed: SpeedReport | None = None
    loads: tuple[LoadReport, ...] = ()
    if measures_speed:
        directories = (dense_dir, compressed_dir)
        speed, loads = _compare_speeds(*directories, config, (dtype, device), should_cancel)
    on_progress(ProgressEvent(stage=Stage.EVALUATE, message="evaluation finished", fraction=1.0))
    return EvaluationReport(
        config=config,
        perplexity=perplexities,
        tasks=tasks,
        speed=speed,
        speed_grid=loads,
        continuations=_pair_continuations(config, dense, compressed),
    )


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
        CompressionCancelledError: if the run is cancelled.
    """
    _require_lengths(directory, config.model_copy(update={"benchmark": False, "speed_grid": ()}))
    scorer = _Scorer(
        config=config,
        tasks=tasks or open_requested_tasks(config),
        dtype=dtype,
        device=device,
        should_cancel=should_cancel,
    )

    def report(message: str, fraction: float) -> None:
        on_progress(ProgressEvent(stage=Stage.EVALUATE, message=message, fraction=fraction))

    texts = _load_texts(directory, config.perplexity, config, report)
    model = scorer.load(directory)
    require_known_texts(load_tokenizer(directory), embedding_rows(model), texts, config.prompts)
    return ModelScores(
        perplexity=scorer.score_texts(model, texts, text_prefix(load_tokenizer(directory)), report),
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


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """Scoring of models with the same settings."""

    config: EvaluationConfig
    tasks: OpenedTasks | None
    dtype: str
    device: str
    should_cancel: CancellationCheck

    def load(self, directory: Path) -> PreTrainedModel:
        return load_model(directory, dtype=self.dtype, device=self.device)

    def score_dense(self, directory: Path, cache: DenseScores, report: _Report) -> ModelScores:
        """Load and write the texts, score the dense model on them, and fill the cache."""
        sources = [source for source in self.config.perplexity if source not in WRITTEN]
        texts = _load_texts(directory, sources, self.config, report)
        model = self.load(directory)
        rows = embedding_rows(model)
        tokenizer = load_tokenizer(directory)
        require_known_texts(tokenizer, rows, texts, self.config.prompts)
        cache.prefix = text_prefix(tokenizer)
        cache.texts = texts | self._write_texts(model, directory, report)
        cache.scores = self._score(model, directory, cache, report)
        return cache.scores

    def score_compressed(self, directory: Path, cache: DenseScores, report: _Report) -> ModelScores:
        """Load the compressed model and score it on the dense model's texts."""
        return self._score(self.load(directory), directory, cache, report)

    def _score(
        self, model: PreTrainedModel, directory: Path, cache: DenseScores, report: _Report
    ) -> ModelScores:
        with advising_bfloat16(model.dtype):
            return ModelScores(
                perplexity=self.score_texts(model, cache.texts, cache.prefix, report),
                tasks=self.score_tasks(model, directory, report),
                continuations=continuations(
                    model,
                    load_tokenizer(directory),
                    self.config.prompts,
                    should_cancel=self.should_cancel,
                ),
            )

    def _write_texts(
        self, dense: PreTrainedModel, directory: Path, report: _Report
    ) -> dict[str, Tensor]:
        """Let the dense model write its texts; return their tokens by source."""
        texts = {}
        for source in dict.fromkeys(self.config.perplexity):
            if source in WRITTEN:
                report(f"writing {source}", 0.0)
                texts[source] = written_tokens(
                    source,
                    dense,
                    load_tokenizer(directory),
                    max_tokens=self.config.max_tokens,
                    context_length=self.config.context_length,
                    should_cancel=self.should_cancel,
                )
        return texts

    def score_texts(
        self,
        model: PreTrainedModel,
        texts: dict[str, Tensor],
        prefix: tuple[int, ...],
        report: _Report,
    ) -> dict[str, PerplexityResult]:
        """Compute the model's perplexity on every text, in windows that begin with `prefix`."""
        results = {}
        for index, (source, tokens) in enumerate(texts.items()):

            def on_part(fraction: float, index: int = index, source: str = source) -> None:
                report(f"perplexity on {source}", (index + fraction) / len(texts))

            results[source] = perplexity(
                model,
                tokens,
                context_length=self.config.context_length,
                batch_size=max(1, _TOKENS_AT_ONCE // self.config.context_length),
                prefix=prefix,
                on_progress=on_part,
                should_cancel=self.should_cancel,
            )
        return results

    def score_tasks(
        self, model: PreTrainedModel, directory: Path, report: _Report
    ) -> tuple[TaskScore, ...]:
        """Compute the model's scores in all tasks; their progress is not known."""
        if self.tasks is None:
            return ()
        report("tasks", 1.0)
        return score_tasks(
            model, load_tokenizer(directory), self.tasks, should_cancel=self.should_cancel
        )


def _load_texts(
    directory: Path, sources: Iterable[str], config: EvaluationConfig, report: _Report
) -> dict[str, Tensor]:
    """Return the held-out tokens of every text by its source; report skipped records."""
    tokenizer = load_tokenizer(directory)
    warnings: list[str] = []
    texts = {
        source: evaluation_tokens(
            source,
            tokenizer,
            config.max_tokens,
            text_field=config.text_field,
            warnings=warnings,
        )
        for source in sources
    }
    for warning in warnings:
        report(f"warning: {warning}", 0.0)
    return texts


def _settings_key(config: EvaluationConfig, dtype: str) -> str:
    """Return all settings on which the dense model's texts and scores depend."""
    settings = config.model_dump(exclude={"benchmark", "speed_grid", "gate"}, mode="json")
    return f"{settings} {dtype}"


def _compare_texts(
    config: EvaluationConfig,
    cache: DenseScores,
    scores: tuple[ModelScores, ModelScores],
    calibration: Tensor | None,
) -> tuple[PerplexityComparison, ...]:
    """Compare both models' perplexities and compute each text's overlap with the calibration."""
    dense, compressed = (model.perplexity for model in scores)
    # No text contains the prefix of the calibration sequences, which therefore never overlaps.
    seen = None if calibration is None else SeenNgrams(calibration.cpu().numpy())
    return tuple(
        PerplexityComparison(
            text=source,
            context_length=config.context_length,
            tokens=compressed[source].tokens_scored,
            dense=dense[source].perplexity,
            compressed=compressed[source].perplexity,
            calibration_overlap=seen and seen.fraction_of(cache.texts[source].cpu().numpy()),
            begins_with_bos=bool(cache.prefix),
        )
        for source in dict.fromkeys(config.perplexity)
    )


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


def _progress_of(on_progress: ProgressListener, index: int, share: float) -> _Report:
    """Return a callback for the scoring progress of the dense (0) or the compressed (1) model."""
    name = ("dense", "compressed")[index]

    def report(message: str, fraction: float) -> None:
        on_progress(
            ProgressEvent(
                stage=Stage.EVALUATE,
                message=f"{name} model: {message}",
                fraction=share * (index + fraction),
            )
        )

    return report


def _compare_speeds(
    dense_dir: Path,
    compressed_dir: Path,
    config: EvaluationConfig,
    compute: tuple[str, str],
    should_cancel: CancellationCheck,
) -> tuple[SpeedReport | None, tuple[LoadReport, ...]]:
    """Time both models, in a clean process where this process caches few compiled kernels."""
    dtype, device = compute
    if not keeps_few_kernels():
        return compare_speeds(
            dense_dir,
            compressed_dir,
            config,
            dtype=dtype,
            device=device,
            should_cancel=should_cancel,
        )
    process = CleanProcess(
        program=speed_process.__file__,
        arguments=[str(PACKAGES_DIRECTORY)],
        make_error=lambda reason: MeasurementError(f"speed could not be measured: {reason}"),
    )
    request = {
        "dense": str(dense_dir.resolve()),
        "compressed": str(compressed_dir.resolve()),
        "config": config.model_dump(mode="json"),
        "dtype": dtype,
        "device": device,
    }
    reply = process.run(request, should_cancel)
    speed = reply["speed"]
    return (
        speed and SpeedReport.model_validate(speed),
        tuple(LoadReport.model_validate(load) for load in reply["loads"]),
    )
