"""Recovery fine-tuning step by step: measure, train, merge, measure again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.calibration import calibration_hash
from intraslice_core.checkpoints.writer import WrittenRecord, ensure_disk_space
from intraslice_core.config import HELD_OUT_SEQUENCES, RecoveryConfig, TrainingTextConfig
from intraslice_core.content_key import content_key, fingerprint
from intraslice_core.device import resolve_device, return_free_memory, rounding_class
from intraslice_core.errors import (
    CalibrationError,
    CalibrationTooShortError,
    ConfigurationError,
)
from intraslice_core.evaluation.forward_meter import report_layers
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import PerplexityResult, perplexity
from intraslice_core.finetuning.adapters import merge_into, merged_weights, prepare_parameters
from intraslice_core.finetuning.objective import Objective
from intraslice_core.finetuning.processes import Processes
from intraslice_core.finetuning.training import Moment, StoppedBy, Training
from intraslice_core.plan import ModelPlan
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.reports.schema import (
    MAX_LOSS_POINTS,
    HeldOutPerplexity,
    LossPoint,
    RecoveryReport,
)
from intraslice_core.resume_state import ResumeState


@contextmanager
def attributed_to_recover() -> Iterator[None]:
    """Attribute errors about the training text to the fields of `recover`.

    The text is read by the calibration's code, whose errors name the calibration.

    Raises:
        CalibrationError: naming `max_tokens` if there is too little text, else `source`.
    """
    try:
        yield
    except CalibrationError as error:
        too_short = isinstance(error, CalibrationTooShortError)
        error.field = f"compression.recover.{'max_tokens' if too_short else 'source'}"
        raise


TRAINING_FILE = "training-text.int32"
"""Name of the file that training text is streamed to."""


def training_file(place: Path, text: TrainingTextConfig) -> Path:
    """Return the file for the training text in a directory.

    Raises:
        InsufficientDiskError: if there is no room for it, at 4 bytes a token.
    """
    ensure_disk_space(place, 4 * text.samples * text.sequence_length)
    return place / TRAINING_FILE


BeforeStep = Callable[[Moment, int], None]
"""Called with the progress of the training and its largest number of steps."""


def ignore_step(_moment: Moment, _steps: int) -> None:
    """Do nothing before a step."""


def ignore_record(_record: WrittenRecord) -> None:
    """Do nothing with the record of a merge."""


@dataclass(frozen=True, kw_only=True)
class RecoveryWork:
    """A compressed checkpoint to train, its text, its teacher and its settings."""

    dense: Path
    compressed: Path
    """Checkpoint whose weights are replaced."""
    config: RecoveryConfig
    tokens: Tensor
    """Sequences to train on, then `HELD_OUT_SEQUENCES` to measure with; (n, sequence_length).

    Integers of any size, which may be mapped from a file. Empty in all but the main process.
    """
    processes: Processes = field(default_factory=Processes)
    """Processes that train together."""
    plan: ModelPlan | None = None
    """Shapes of the dense model's layers; None if no layer was removed."""
    prefix: tuple[int, ...] = ()
    """Tokens that every sequence begins with (`calibration.text_prefix`)."""
    dtype: str = "auto"
    """Compute dtype; float16 becomes float32, because gradients vanish in it."""
    device: str = "auto"
    resume_state: ResumeState | None = None
    should_cancel: CancellationCheck = never_cancelled
    before_step: BeforeStep = field(default=ignore_step)
    on_merged: Callable[[WrittenRecord], None] = field(default=ignore_record)
    """Called with the digests of the merged files."""

    @property
    def sequences(self) -> Tensor:
        """Return the sequences to train on."""
        return self.tokens[:-HELD_OUT_SEQUENCES]

    @property
    def steps(self) -> int:
        """Return the largest number of steps."""
        config = self.config
        per_step = config.batch_size * config.gradient_accumulation * self.processes.count
        return -(-len(self.sequences) // per_step)


def recover_checkpoint(work: RecoveryWork) -> tuple[RecoveryReport, list[str]]:
    """Train a compressed checkpoint and merge the adapters into its weights, in the main process.

    Returns:
        The report, and warnings.

    Raises:
        NumericalError: if the loss or a perplexity is not finite.
        CompressionCancelledError: if the run is to stop; the checkpoint is unchanged.
        ConfigurationError: if the model has no linear layer left.
    """
    trained, dense = _against_dense(work)
    return_free_memory()
    after = _score(work, _load(work, work.compressed))
    return trained.report(work.config, dense, after), trained.warnings


def _against_dense(work: RecoveryWork) -> tuple[_Trained, PerplexityResult]:
    """Score the dense model, then train; it stays in memory only if it is the teacher."""
    dense = _load(work, work.dense)
    score = _score(work, dense)
    teacher = dense if work.config.needs_teacher else None
    del dense
    return_free_memory()
    return _train_and_merge(work, teacher), score


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """Results of a training that outlive its model."""

    before: PerplexityResult
    parameters: int
    processes: int
    steps: int
    tokens: int
    seconds: float
    stopped_by: StoppedBy
    losses: tuple[LossPoint, ...]
    warnings: list[str]

    def report(
        self, config: RecoveryConfig, dense: PerplexityResult, after: PerplexityResult
    ) -> RecoveryReport:
        return RecoveryReport(
            config=config,
            tokens=self.tokens,
            steps=self.steps,
            seconds=self.seconds,
            stopped_by=self.stopped_by,
            trained_parameters=self.parameters,
            processes=self.processes,
            losses=self.losses,
            held_out=HeldOutPerplexity(
                tokens=after.tokens_scored,
                dense=dense.perplexity,
                before=self.before.perplexity,
                after=after.perplexity,
            ),
        )


def train_with_main_process(work: RecoveryWork) -> None:
    """Compute gradients of the main process's steps until it ends the training.

    The other processes of a launcher call this while the main one calls `recover_checkpoint`.

    Raises:
        NumericalError: if the loss is not finite.
        ConfigurationError: if the model has no linear layer left.
    """
    teacher = _load(work, work.dense) if work.config.needs_teacher else None
    training, _, _ = _training(work, _load(work, work.compressed), teacher)
    training.run(lambda _: None, None, "")


def _training(
    work: RecoveryWork, model: PreTrainedModel, teacher: PreTrainedModel | None
) -> tuple[Training, int, torch.dtype]:
    """Return the training of a model, the number of trained parameters and the compute dtype."""
    dtype = model.dtype
    parameters = list(prepare_parameters(model, work.config).values())
    compared = None if work.plan is None else work.plan.output_layers
    if teacher is not None and work.plan is not None and work.config.loss_weights.hidden > 0.0:
        _require_comparable_states(work.plan)
        _require_layers(teacher, len(work.plan.layers))
    objective = Objective(model, teacher, work.config, len(work.prefix), dtype, compared)
    training = Training(objective, parameters, work.sequences, work.config, work.processes)
    return training, sum(parameter.numel() for parameter in parameters), dtype


def _require_comparable_states(plan: ModelPlan) -> None:
    """Raise if the hidden states have other bases and widths than the teacher's.

    Raises:
        ConfigurationError: naming the loss.
    """
    if plan.slices_residual:
        raise ConfigurationError(
            "the hidden states of a sliced residual stream (method slicegpt) cannot be compared "
            "with the teacher's",
            field="compression.recover.loss",
            hint="use loss distill or ce",
        )


def _require_layers(teacher: PreTrainedModel, layers: int) -> None:
    """Raise if the teacher has another number of layers than the model that was compressed.

    Raises:
        ConfigurationError: naming both.
    """
    present = teacher.config.get_text_config().num_hidden_layers
    if present != layers:
        raise ConfigurationError(
            f"the teacher has {present} layers, the model that was compressed had {layers}: their "
            "hidden states cannot be compared",
            field="compression.recover.loss",
            hint="use loss distill, or that model as the teacher",
        )


def _train_and_merge(work: RecoveryWork, teacher: PreTrainedModel | None) -> _Trained:
    model = _load(work, work.compressed)
    before = _score(work, model)
    training, parameters, dtype = _training(work, model, teacher)

    def before_step(moment: Moment) -> None:
        raise_if_cancelled(work.should_cancel)
        work.before_step(moment, work.steps)

    # Hashing both models is worth its time only if the training can be resumed.
    key = "" if work.resume_state is None else _key(work, dtype)
    stopped_by, warnings = training.run(before_step, work.resume_state, key)
    work.on_merged(merge_into(work.compressed, merged_weights(model)))
    length = work.config.sequence_length
    ends = [
        min(step * training.sequences_per_step, len(work.sequences)) * length
        for step in range(1, training.state.step + 1)
    ]
    return _Trained(
        before=before,
        parameters=parameters,
        processes=work.processes.count,
        steps=training.state.step,
        tokens=training.state.sequences * length,
        seconds=training.state.seconds,
        stopped_by=stopped_by,
        losses=loss_curve(training.state.losses, ends),
        warnings=warnings,
    )


def loss_curve(losses: Sequence[float], ends: Sequence[int]) -> tuple[LossPoint, ...]:
    """Reduce the losses to at most `MAX_LOSS_POINTS` means over equally many steps.

    Args:
        losses: loss of each step.
        ends: tokens trained on after each step.
    """
    size = -(-len(losses) // MAX_LOSS_POINTS) or 1
    return tuple(
        LossPoint(
            tokens=ends[min(start + size, len(losses)) - 1],
            loss=fmean(losses[start : start + size]),
        )
        for start in range(0, len(losses), size)
    )


def _key(work: RecoveryWork, dtype: torch.dtype) -> str:
    """Return the digest of everything a training depends on."""
    return content_key(
        dense=fingerprint(work.dense),
        compressed=fingerprint(work.compressed),
        recover=work.config.model_dump(mode="json"),
        tokens=calibration_hash(work.tokens),
        prefix=work.prefix,
        dtype=str(dtype),
        place=rounding_class(resolve_device(work.device)),
        processes=work.processes.count,
        peft=version("peft"),
    )


def _load(work: RecoveryWork, directory: Path) -> PreTrainedModel:
    model = load_model(directory, dtype=work.dtype, device=work.device)
    if model.dtype == torch.float16:
        model.to(torch.float32)  # type: ignore[arg-type]
    report_layers(model)
    return model


def _score(work: RecoveryWork, model: PreTrainedModel) -> PerplexityResult:
    """Return the perplexity on the held-out sequences, each scored as one window."""
    return perplexity(
        model,
        work.tokens[-HELD_OUT_SEQUENCES:, len(work.prefix) :].flatten().long(),
        context_length=work.config.sequence_length,
        batch_size=work.config.batch_size,
        prefix=work.prefix,
        should_cancel=work.should_cancel,
    )
