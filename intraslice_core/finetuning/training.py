"""The training loop: losses, learning rate schedule and steps, bounded by tokens or time.

Logits are never held for a whole batch: gradients are taken a few rows at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice_core.config import RecoveryConfig
from intraslice_core.cost_model.memory import LOGITS_AT_ONCE
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.perplexity import OutputHead
from intraslice_core.finetuning.state import TrainingFile, TrainingState
from intraslice_core.resume_state import ResumeState


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of float32 logits (rows, vocabulary) and tokens (rows,)."""
    return F.cross_entropy(logits, targets, reduction="sum")


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T² Σ KL(teacher ‖ student)` over rows at temperature T, in nats.

    T² keeps the gradient's magnitude when T changes.

    Args:
        logits: of the student, (rows, vocabulary), float32.
        teacher: logits of the dense model, of the same shape, without a graph.
        temperature: softens both distributions; 1 leaves them as they are.
    """
    student_log = F.log_softmax(logits / temperature, -1)
    teacher_log = F.log_softmax(teacher / temperature, -1)
    summed = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return temperature**2 * summed


def rows_at_once(head: OutputHead) -> int:
    """Return the number of rows whose logits take a few dozen megabytes."""
    return max(1, LOGITS_AT_ONCE // int(head.head.weight.shape[0]))


def backward_in_parts(
    hidden: Tensor,
    rows: int,
    part_loss: Callable[[Tensor, slice], Tensor],
    *,
    scale: float = 1.0,
) -> Tensor:
    """Backpropagate a sum over rows with the graph of only a few rows in memory at a time.

    Args:
        hidden: (n, hidden_size) with a graph, which receives the gradient.
        rows: number of rows per part.
        part_loss: returns the loss of a part from its rows of `hidden` and their slice.
        scale: factor of the gradient.

    Returns:
        The total loss without a graph and unscaled, float64, on the CPU.
    """
    total = torch.zeros((), dtype=torch.float64)
    gradients: list[Tensor] = []
    for start in range(0, len(hidden), rows):
        place = slice(start, min(start + rows, len(hidden)))
        leaf = hidden[place].detach().requires_grad_(True)
        loss = part_loss(leaf, place)
        gradients += torch.autograd.grad(loss, leaf)
        total += loss.detach().double().cpu()
    hidden.backward(torch.cat(gradients) * scale)  # type: ignore[no-untyped-call]
    return total


WARM_UP = 0.05
"""Fraction of the training until the peak learning rate."""


def learning_rate_factor(done: float) -> float:
    """Return the fraction of the peak rate: linear warm-up, then a cosine down to zero.

    It depends only on the finished fraction of the nearer bound, tokens or time. A training that
    the clock ends therefore cools down as well, and no schedule state has to be saved.

    Args:
        done: finished fraction of the training at the middle of a step, in [0, 1].
    """
    if done < WARM_UP:
        return done / WARM_UP
    falling = (min(done, 1.0) - WARM_UP) / (1.0 - WARM_UP)
    return 0.5 * (1.0 + math.cos(math.pi * falling))


LONGEST_GRADIENT = 1.0
"""Largest gradient norm over all adapters; longer gradients are clipped."""


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
    """Loss of the last step, in nats per token."""


StoppedBy = Literal["tokens", "time"]
LossOfRows = Callable[[Tensor, slice], Tensor]
"""Returns the summed loss from the logits of some rows of a batch and their slice."""

BeforeStep = Callable[[Moment], None]
"""Called before every step; raises to stop."""


class Training:
    """Trains the adapters of one model.

    The model stays in evaluation mode. Dropout would be the only source of randomness, and a
    student with dropout has more to recover than its teacher asks for.

    Args:
        model: with adapters.
        teacher: the dense model for the loss `distill`; None otherwise.
        parameters: of the adapters.
        sequences: (n, sequence_length) tokens, each used once, in order.
        config: loss, bounds and optimiser settings.
        prefix_length: positions of the prefix at the beginning of every sequence; no loss is of
            them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        parameters: Sequence[nn.Parameter],
        sequences: Tensor,
        config: RecoveryConfig,
        prefix_length: int = 0,
    ) -> None:
        self._model, self._teacher = model.train(False), teacher
        self._first = max(prefix_length, 1)
        self._parameters = list(parameters)
        self._sequences = sequences
        self._config = config
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=0.0
        )
        self.state = TrainingState()

    def _stopped_by(self) -> StoppedBy | None:
        if self.state.sequences >= len(self._sequences):
            return "tokens"
        limit = self._config.max_seconds
        return "time" if limit is not None and self.state.seconds >= limit else None

    def run(
        self, before_step: BeforeStep, resume_state: ResumeState | None, key: str
    ) -> tuple[StoppedBy, list[str]]:
        """Train to the end, resuming an interrupted training.

        Args:
            before_step: called with the progress before each step.
            resume_state: directory for the training's state; None saves nothing.
            key: digest of everything the training depends on.

        Returns:
            The bound that ended the training, and warnings.

        Raises:
            NumericalError: if the loss or its gradient is not finite.
        """
        file = TrainingFile(resume_state, key, self._parameters, self._optimizer)
        self.state = file.restore()
        warnings: list[str] = []
        while (stopped_by := self._stopped_by()) is None:
            before_step(self.moment())
            self._timed_step()
            warning = file.save(self.state, at_once=self._stopped_by() is not None)
            if warning is not None and warning not in warnings:
                warnings.append(warning)
        return stopped_by, warnings

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

    def _timed_step(self) -> None:
        began, state = time.perf_counter(), self.state
        batch = self._sequences[state.sequences : state.sequences + self._config.batch_size]
        factor = learning_rate_factor(self._done(state.sequences + len(batch) / 2))
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * factor
        state.losses.append(self._step(batch.to(self._model.device)))
        state.sequences += len(batch)
        state.seconds += time.perf_counter() - began

    def _step(self, batch: Tensor) -> float:
        """Take one step on tokens (batch, sequence_length).

        Returns:
            The loss before the step, in nats per token.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        self._require_finite(loss, "loss")
        norm = nn.utils.clip_grad_norm_(self._parameters, LONGEST_GRADIENT)
        self._require_finite(float(norm), "loss's gradient")
        self._optimizer.step()
        return loss

    def _backward(self, batch: Tensor) -> float:
        positions = slice(self._first - 1, None)  # the first that predicts a token of the text
        with self._precision():
            hidden = _hidden(self._model, batch)[:, positions]
        head = OutputHead.of(self._model)
        if self._teacher is None:
            hidden = hidden[:, :-1]
            of_logits = _text_loss(batch[:, self._first :].flatten())
        else:
            of_logits = _teacher_loss(self._teacher, batch, positions, self._config.temperature)
        hidden = hidden.flatten(0, 1)

        def part_loss(leaf: Tensor, rows: slice) -> Tensor:
            with self._precision():
                logits = head.logits(leaf)
            return of_logits(logits, rows)

        total = backward_in_parts(hidden, rows_at_once(head), part_loss, scale=1.0 / len(hidden))
        return float(total) / len(hidden)

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context: float32 adapters multiply in the model's bfloat16."""
        wide = self._model.dtype == torch.float32
        return torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=not wide)

    def _require_finite(self, value: float, what: str) -> None:
        if not torch.isfinite(torch.tensor(value)):
            raise NumericalError(
                f"the {what} is NaN or infinite in training step {self.state.step + 1}",
                hint="lower recover.learning_rate, or compute in float32",
            )


def _text_loss(targets: Tensor) -> LossOfRows:
    def loss(logits: Tensor, rows: slice) -> Tensor:
        return next_token_loss(logits, targets[rows])

    return loss


def _teacher_loss(
    teacher: PreTrainedModel, batch: Tensor, positions: slice, temperature: float
) -> LossOfRows:
    head = OutputHead.of(teacher)
    with torch.no_grad():
        hidden = _hidden(teacher, batch)[:, positions].flatten(0, 1)

    def loss(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            teacher_logits = head.logits(hidden[rows])
        return divergence(logits, teacher_logits, temperature)

    return loss


def _hidden(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Return the last hidden states, (batch, sequence_length, hidden_size)."""
    hidden: Tensor = model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    return hidden
