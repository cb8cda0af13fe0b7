"""The training loop: learning rate schedule and steps, bounded by tokens or time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from intraslice_core.config import RecoveryConfig, Schedule
from intraslice_core.device_memory import BatchSize
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.finetuning.objective import Objective
from intraslice_core.finetuning.processes import Processes
from intraslice_core.finetuning.state import TrainingFile, TrainingState
from intraslice_core.resume_state import ResumeState


def learning_rate_factor(
    done: float, schedule: Schedule = "cosine", warm_up: float = 0.05
) -> float:
    """Return the fraction of the peak rate: linear warm-up, then the schedule.

    It depends only on the finished fraction of the nearer bound, tokens or time. A training that
    the clock ends therefore cools down as well, and no schedule state has to be saved. The
    schedules of transformers count steps, whose number is not known where time is the bound.

    Args:
        done: finished fraction of the training at the middle of a step, in [0, 1].
        schedule: course after the warm-up.
        warm_up: fraction of the training until the peak.
    """
    if done < warm_up:
        return done / warm_up
    if schedule == "constant":
        return 1.0
    falling = (min(done, 1.0) - warm_up) / (1.0 - warm_up)
    return 1.0 - falling if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * falling))


LONGEST_GRADIENT = 1.0
"""Largest gradient norm over all trained parameters; longer gradients are clipped."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Progress of a training before a step."""

    step: int
    """Number of finished steps."""
    done: float
    """Finished fraction of the nearer bound, tokens or time, in [0, 1]."""
    seconds_left: float | None
    """Estimate of the remaining time; None before the first step."""
    loss: float | None
    """Loss of the last step, per token."""


StoppedBy = Literal["tokens", "time"]

BeforeStep = Callable[[Moment], None]
"""Called before every step; raises to stop."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step as the main process tells it to all."""

    rows: Tensor
    """Sequences of all processes, (n, sequence_length)."""
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Message of the main process before each step; without a step the training ends."""

    step: _Step | None


class Training:
    """Trains parameters of one model, in one process or in several.

    Args:
        objective: loss, with the model.
        parameters: those to train, in a fixed order.
        sequences: (n, sequence_length) tokens, each used once, in order; only the main process
            reads them.
        config: bounds and optimiser settings.
        processes: those that train together.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        sequences: Tensor,
        config: RecoveryConfig,
        processes: Processes,
    ) -> None:
        self._objective: nn.Module = objective
        self._device = objective.student.device
        self._parameters = list(parameters)
        self._sequences = sequences
        self._config = config
        self._processes = processes
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.peak_learning_rate, weight_decay=config.weight_decay
        )
        self._batch = BatchSize(
            requested=config.batch_size,
            setting="compression.recover.batch_size",
            lower="compression.recover.sequence_length",
        )
        self.state = TrainingState()

    @property
    def sequences_per_step(self) -> int:
        """Largest number of sequences in a step, over all processes."""
        config = self._config
        return config.batch_size * config.gradient_accumulation * self._processes.count

    def run(
        self, before_step: BeforeStep, resume_state: ResumeState | None, key: str
    ) -> tuple[StoppedBy, list[str]]:
        """Train to the end, resuming an interrupted training.

        Args:
            before_step: called with the progress before each step, in the main process.
            resume_state: directory for the training's state; None saves nothing.
            key: digest of everything the training depends on.

        Returns:
            The bound that ended the training, and warnings.

        Raises:
            NumericalError: if the loss or its gradient is not finite.
        """
        file = TrainingFile(resume_state, key, self._parameters, self._optimizer)
        self._begin(file)
        warnings: list[str] = []
        while (turn := self._next_turn(before_step, file)).step is not None:
            began = time.perf_counter()
            self.state.losses.append(self._take(turn.step))
            self.state.sequences += len(turn.step.rows)
            self.state.seconds += time.perf_counter() - began
            warning = file.save(self.state, at_once=self._stopped_by() is not None)
            if warning is not None and warning not in warnings:
                warnings.append(warning)
        return self._stopped_by() or "tokens", warnings

    def _begin(self, file: TrainingFile) -> None:
        """Restore the state of an interrupted training, in all processes."""
        self.state = self._processes.share(file.restore() if self._processes.is_main else None)
        if self.state.step:
            if not self._processes.is_main:
                file.allocate_moments(self.state.step)
            self._processes.copy_from_main([*self._parameters, *file.moments()])
        self._objective = self._processes.parallel(self._objective)

    def _next_turn(self, before_step: BeforeStep, file: TrainingFile) -> _Turn:
        """Return the next step or the end, in all processes; save the state if the run stops."""
        turn: _Turn | None = None
        if self._processes.is_main:
            stopped = self._stopped_by() is not None
            if not stopped:
                try:
                    before_step(self.moment())
                except CompressionCancelledError:
                    if self.state.step:
                        file.save(self.state, at_once=True)
                    raise
            turn = _Turn(step=None if stopped else self._next_step())
        return self._processes.share(turn)

    def _next_step(self) -> _Step:
        begin, config = self.state.sequences, self._config
        rows = self._sequences[begin : begin + self.sequences_per_step].clone()
        done = self._done(begin + len(rows) / 2)
        factor = learning_rate_factor(done, config.schedule, config.warm_up)
        return _Step(rows=rows, learning_rate=config.peak_learning_rate * factor)

    def _stopped_by(self) -> StoppedBy | None:
        if self.state.sequences >= len(self._sequences):
            return "tokens"
        limit = self._config.max_seconds
        return "time" if limit is not None and self.state.seconds >= limit else None

    def moment(self) -> Moment:
        """Return the current progress."""
        state = self.state
        done = self._done(state.sequences)
        left = state.seconds * (1.0 - done) / done if state.step and done > 0.0 else None
        loss = state.losses[-1] if state.losses else None
        return Moment(step=state.step, done=done, seconds_left=left, loss=loss)

    def _done(self, sequences: float) -> float:
        by_tokens = sequences / len(self._sequences)
        limit = self._config.max_seconds
        by_time = 0.0 if limit is None else self.state.seconds / limit
        return min(max(by_tokens, by_time), 1.0)

    def _take(self, step: _Step) -> float:
        """Take one step.

        Returns:
            The loss before the step, the mean over the sequences of all processes.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = step.learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(step.rows)
        self._require_finite(loss, "loss")
        norm = nn.utils.clip_grad_norm_(self._parameters, LONGEST_GRADIENT)
        self._require_finite(float(norm), "loss's gradient")
        self._optimizer.step()
        return loss

    def _backward(self, rows: Tensor) -> float:
        """Sum the gradients of all batches of a step, over all processes; return the mean loss.

        Where they do not fit the device, the step is repeated with twice as many batches of half
        the size. Several processes cannot: each waits for the others in the last batch of a step.
        """
        own = self._processes.rows(rows)
        # A process without a sequence in the last step takes part in its sum with weight 0.
        weight = self._processes.count / len(rows) if len(own) else 0.0
        sequences = own if len(own) else rows[:1]
        if self._processes.count > 1:
            total = self._summed_gradients(sequences, weight, self._batch.size)
        else:
            total = self._batch.repeat(
                lambda size: self._summed_gradients(sequences, weight, size),
                undo=self._optimizer.zero_grad,
            )
        return float(self._processes.total(total * bool(len(own)))) / len(rows)

    def _summed_gradients(self, sequences: Tensor, weight: float, size: int) -> Tensor:
        """Add the gradients of a process's sequences, and return the sum of their losses.

        Args:
            sequences: (n, sequence_length).
            weight: factor on the loss in the gradients.
            size: sequences in one batch.
        """
        batches = torch.split(sequences, size)
        total = torch.zeros((), dtype=torch.float32, device=self._device)
        for number, batch in enumerate(batches, start=1):
            complete = number == len(batches)
            with self._processes.accumulate(self._objective, complete=complete):
                loss = self._objective(batch.to(self._device, torch.int64))
                (loss * weight).backward()
            total += loss.detach()
        return total

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NumericalError(
                f"the {what} is NaN or infinite in training step {self.state.step + 1}",
                hint="lower recover.learning_rate, or compute in float32",
            )
