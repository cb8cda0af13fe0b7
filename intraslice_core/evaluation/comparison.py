"""Dense against compressed: quality first, one model in memory at a time, then speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from intraslice_core.config import EvaluationConfig, GateConfig
from intraslice_core.device import keeps_few_kernels
from intraslice_core.errors import MeasurementError, NumericalError, QualityGateError
from intraslice_core.evaluation import speed_process
from intraslice_core.evaluation.clean_process import OUR_PLACE, CleanProcess
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
from intraslice_core.evaluation.timing import compare_speeds
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

_TOKENS_AT_ONCE = 4096
_PERPLEXITY_SHARE = 0.9
"""Part of the evaluation's progress that perplexity takes when speed is measured too."""

_BETTER = "ask for a lower ratio or more calibration text"


@dataclass(kw_only=True)
class DenseScores:
    """What a dense model has written and scored, for the next comparison with the same settings.

    Whoever keeps it compares with one dense model only.
    """

    key: str = ""
    texts: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, PerplexityResult] = field(default_factory=dict)
    tasks: tuple[TaskScore, ...] = ()
    continuations: tuple[str, ...] = ()

    def knows(self, key: str) -> bool:
        """Whether all of it was measured with these settings; else it is empty afterwards."""
        if self.key != key:
            self.key, self.texts, self.results, self.tasks = key, {}, {}, ()
            self.continuations = ()
        return bool(self.results or self.tasks or self.continuations)


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What one model has scored: perplexities by text, and tasks."""

    perplexity: dict[str, PerplexityResult]
    tasks: tuple[TaskScore, ...]


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What the comparison needs beside its settings, where somebody has it."""

    tasks: OpenedTasks | None = None
    """The settings' tasks; opened here if they are not given."""
    calibration: Tensor | None = None
    """The compression's sequences, (samples, sequence_length): what the texts may share with it."""
    known: DenseScores | None = None
    """What an earlier comparison found out about the dense model; kept for the next."""


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

    The dense model writes the texts that are a model's own, once, and both are scored on them.
    Progress fractions are of the evaluation, in [0, 1].

    Raises:
        QualityGateError: if the compressed model is worse than the gate allows.
        CalibrationSourceError: if a text cannot be read, or only the dense model could write it.
        TaskError: if a task cannot be measured.
        MeasurementError: if the speed cannot be measured.
        CompressionCancelledError: if asked to stop.
    """
    share = _PERPLEXITY_SHARE if config.benchmark or config.speed_grid else 1.0
    tasks = materials.tasks or open_asked_for(config)
    dense = materials.known or DenseScores()
    if not dense.knows(_settings_key(config, dtype)):
        report = _announcer(on_progress, 0, share / 2)
        texts = _load_texts(
            dense_dir, [one for one in config.perplexity if one not in WRITTEN], config
        )
        model = load_model(dense_dir, dtype=dtype, device=device)
        dense.texts = texts | _write_texts(model, dense_dir, config, report, should_cancel)
        dense.results = _score(model, dense.texts, config, report, should_cancel)
        dense.tasks = _score_tasks(model, dense_dir, tasks, report, should_cancel)
        dense.continuations = _continue(model, dense_dir, config, should_cancel)
        del model
    report = _announcer(on_progress, 1, share / 2)
    model = load_model(compressed_dir, dtype=dtype, device=device)
    results = _score(model, dense.texts, config, report, should_cancel)
    scored = _score_tasks(model, compressed_dir, tasks, report, should_cancel)
    continued = _continue(model, compressed_dir, config, should_cancel)
    del model
    perplexities = _compare_texts(config, dense, results, materials.calibration)
    compared = _compare_tasks(dense.tasks, scored)
    if config.gate is not None:
        check_gate(perplexities, compared, config.gate)
    speed: SpeedReport | None = None
    loads: tuple[LoadReport, ...] = ()
    if config.benchmark or config.speed_grid:
        speed, loads = _compare_speeds(
            dense_dir, compressed_dir, config, (dtype, device), should_cancel
        )
    on_progress(ProgressEvent(stage=Stage.EVALUATE, message="evaluated", fraction=1.0))
    return EvaluationReport(
        config=config,
        perplexity=perplexities,
        tasks=compared,
        speed=speed,
        speed_grid=loads,
        continuations=tuple(
            ContinuationComparison(prompt=prompt, dense=before, compressed=after)
            for prompt, before, after in zip(
                config.prompts, dense.continuations, continued, strict=True
            )
        ),
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
    """One model's perplexity, by text, and its scores in the settings' tasks.

    Raises:
        CalibrationSourceError: if a text cannot be read, or only the dense model could write it.
        TaskError: if a task cannot be measured.
        CompressionCancelledError: if asked to stop.
    """
    opened = tasks or open_asked_for(config)
    texts = _load_texts(directory, config.perplexity, config)
    model = load_model(directory, dtype=dtype, device=device)

    def report(what: str, fraction: float) -> None:
        on_progress(ProgressEvent(stage=Stage.EVALUATE, message=what, fraction=fraction))

    return ModelScores(
        perplexity=_score(model, texts, config, report, should_cancel),
        tasks=_score_tasks(model, directory, opened, report, should_cancel),
    )


def open_asked_for(config: EvaluationConfig) -> OpenedTasks | None:
    """The settings' tasks with their examples; None where there are none.

    Raises:
        TaskError: if one cannot be measured.
    """
    return open_tasks(config.tasks, limit=config.task_limit) if config.tasks else None


def check_gate(
    perplexities: tuple[PerplexityComparison, ...],
    tasks: tuple[TaskComparison, ...],
    gate: GateConfig,
) -> None:
    """Refuse a result that is worse than allowed on any text or in any task.

    Raises:
        QualityGateError: naming the text or the task, the ratio and the limit.
    """
    for text in perplexities:
        _check_text(text, gate.max_perplexity_ratio)
    for task in tasks:
        _check_task(task, gate.min_task_ratio)


def _check_text(text: PerplexityComparison, most: float | None) -> None:
    # Written so that NaN fails too.
    if most is not None and not text.ratio <= most:
        raise QualityGateError(
            f"perplexity on {text.text} grew {text.ratio:.3f} times "
            f"({text.dense:.2f} to {text.compressed:.2f}), the gate allows {most:.3f}",
            hint=_BETTER,
        )


def _check_task(task: TaskComparison, least: float | None) -> None:
    if least is not None and not task.ratio >= least:
        raise QualityGateError(
            f"{task.task} keeps {task.ratio:.3f} of its {task.metric} "
            f"({task.dense:.3f} to {task.compressed:.3f}), the gate asks for {least:.3f}",
            hint=_BETTER,
        )


def _load_texts(
    directory: Path, sources: Iterable[str], config: EvaluationConfig
) -> dict[str, Tensor]:
    """Held-out tokens of every text, by its name."""
    tokenizer = _tokenizer(directory)
    return {source: evaluation_tokens(source, tokenizer, config.max_tokens) for source in sources}


def _write_texts(
    dense: PreTrainedModel,
    directory: Path,
    config: EvaluationConfig,
    report: Callable[[str, float], None],
    should_cancel: CancellationCheck,
) -> dict[str, Tensor]:
    """Tokens of the texts that the dense model writes, by their names."""
    texts = {}
    for source in dict.fromkeys(config.perplexity):
        if source in WRITTEN:
            report(f"{source}: it writes first", 0.0)
            texts[source] = written_tokens(
                source,
                dense,
                _tokenizer(directory),
                max_tokens=config.max_tokens,
                context_length=config.context_length,
                should_cancel=should_cancel,
            )
    return texts


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _settings_key(config: EvaluationConfig, dtype: str) -> str:
    """Everything that decides what the dense model writes and scores."""
    asked = config.model_dump(exclude={"benchmark", "speed_grid", "gate"}, mode="json")
    return f"{asked} {dtype}"


def _compare_texts(
    config: EvaluationConfig,
    dense: DenseScores,
    results: dict[str, PerplexityResult],
    calibration: Tensor | None,
) -> tuple[PerplexityComparison, ...]:
    """Both models' perplexities, and how much of each text calibration has seen."""
    seen = None if calibration is None else SeenNgrams(calibration.cpu().numpy())
    return tuple(
        PerplexityComparison(
            text=source,
            context_length=config.context_length,
            tokens=results[source].tokens_scored,
            dense=dense.results[source].perplexity,
            compressed=results[source].perplexity,
            calibration_overlap=seen and seen.fraction_of(dense.texts[source].cpu().numpy()),
        )
        for source in dict.fromkeys(config.perplexity)
    )


def _compare_tasks(
    dense: tuple[TaskScore, ...], compressed: tuple[TaskScore, ...]
) -> tuple[TaskComparison, ...]:
    """Both models' scores; what the dense model has no finite score in is left out.

    Raises:
        NumericalError: if only the compressed model has none.
    """
    found = {(one.task, one.metric): one for one in compressed}
    lost = [one for one in dense if (one.task, one.metric) not in found]
    if lost:
        raise NumericalError(f"{lost[0].metric} of {lost[0].task} is not finite")
    return tuple(
        TaskComparison(
            task=one.task,
            metric=one.metric,
            higher_is_better=one.higher_is_better,
            examples=one.examples,
            shots=one.shots,
            dense=one.value,
            compressed=found[one.task, one.metric].value,
            dense_stderr=one.stderr,
            compressed_stderr=found[one.task, one.metric].stderr,
        )
        for one in dense
    )


def _continue(
    model: PreTrainedModel,
    directory: Path,
    config: EvaluationConfig,
    should_cancel: CancellationCheck,
) -> tuple[str, ...]:
    tokenizer = _tokenizer(directory)
    return continuations(model, tokenizer, config.prompts, should_cancel=should_cancel)


def _score_tasks(
    model: PreTrainedModel,
    directory: Path,
    tasks: OpenedTasks | None,
    report: Callable[[str, float], None],
    should_cancel: CancellationCheck,
) -> tuple[TaskScore, ...]:
    """The model's scores in all tasks, of which nobody knows how long they take."""
    if tasks is None:
        return ()
    report("tasks", 1.0)
    return score_tasks(model, _tokenizer(directory), tasks, should_cancel=should_cancel)


def _score(
    model: PreTrainedModel,
    texts: dict[str, Tensor],
    config: EvaluationConfig,
    report: Callable[[str, float], None],
    should_cancel: CancellationCheck,
) -> dict[str, PerplexityResult]:
    """The model's perplexity on every text."""
    results = {}
    for index, (source, tokens) in enumerate(texts.items()):

        def on_part(fraction: float, index: int = index, source: str = source) -> None:
            report(f"perplexity on {source}", (index + fraction) / len(texts))

        results[source] = perplexity(
            model,
            tokens,
            context_length=config.context_length,
            batch_size=max(1, _TOKENS_AT_ONCE // config.context_length),
            on_progress=on_part,
            should_cancel=should_cancel,
        )
    return results


def _announcer(
    on_progress: ProgressListener, index: int, share: float
) -> Callable[[str, float], None]:
    """Progress of the dense (0) or the compressed (1) model's scoring."""
    name = ("dense", "compressed")[index]

    def report(what: str, fraction: float) -> None:
        on_progress(
            ProgressEvent(
                stage=Stage.EVALUATE,
                message=f"{name} model: {what}",
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
    """In a process of its own where this one keeps few kernels."""
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
        arguments=[str(OUR_PLACE)],
        fails=lambda reason: MeasurementError(f"the speed could not be measured: {reason}"),
    )
    question = {
        "dense": str(dense_dir.resolve()),
        "compressed": str(compressed_dir.resolve()),
        "config": config.model_dump(mode="json"),
        "dtype": dtype,
        "device": device,
    }
    found = process.ask(question, should_cancel)
    speed = found["speed"]
    return (
        speed and SpeedReport.model_validate(speed),
        tuple(LoadReport.model_validate(one) for one in found["loads"]),
    )
