"""The steps of a training, until its tokens or its time are used up."""

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

from intraslice_core.cache import LayerCheckpoints
from intraslice_core.config import RecoveryConfig
from intraslice_core.cost_model.memory import LOGITS_AT_ONCE
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.perplexity import OutputHead
from intraslice_core.finetuning.state import TrainingFile, TrainingState


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of (rows, vocabulary) float32 logits with (rows,) tokens, in nats."""
    return F.cross_entropy(logits, targets, reduction="sum")


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² Σ KL(teacher ‖ student)` over rows, both softened by the temperature T, in nats.

    T² keeps the gradient's size when T changes.

    Args:
        logits: the student's, (rows, vocabulary), float32.
        teacher: the same of the dense model, without a graph.
        temperature: 1 compares the models as they are.
    """
    student_log, teacher_log = (F.log_softmax(one / temperature, -1) for one in (logits, teacher))
    found = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return temperature**2 * found


def rows_at_once(head: OutputHead) -> int:
    """As many as make a few dozen megabytes of logits."""
    return max(1, LOGITS_AT_ONCE // int(head.head.weight.shape[0]))


def backward_in_parts(
    hidden: Tensor,
    rows: int,
    part_loss: Callable[[Tensor, slice], Tensor],
    *,
    scale: float = 1.0,
) -> Tensor:
    """Take the gradient of a sum over rows, with the graph of a few rows in memory at a time.

    Args:
        hidden: (n, hidden_size) with a graph, which the gradient goes down into.
        rows: of a part.
        part_loss: the loss of a part, from its rows of `hidden` and where these are.
        scale: what the gradient is multiplied by.

    Returns:
        The whole loss without a graph and unscaled, float64, on the CPU.
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
"""Part of the training until the peak."""


def learning_rate_factor(done: float) -> float:
    """Part of the peak rate, rising evenly and then falling as a cosine to nothing.

    A function of what is done of the nearer bound, tokens or time, and of nothing else: a
    training that the clock will end cools down as well, and there is no state to keep.

    Args:
        done: part of the training behind the middle of a step, in [0, 1].
    """
    if done < WARM_UP:
        return done / WARM_UP
    falling = (min(done, 1.0) - WARM_UP) / (1.0 - WARM_UP)
    return 0.5 * (1.0 + math.cos(math.pi * falling))


LONGEST_GRADIENT = 1.0
"""Norm over all adapters; what is longer is cut to it."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a training is."""

    step: int
    """Steps made."""
    done: float
    """Part of the nearer bound, tokens or time, in [0, 1]."""
    seconds_left: float | None
    """Unknown before the first step."""
    loss: float | None
    """Of the last step, in nats a token."""


StoppedBy = Literal["tokens", "time"]
LossOfRows = Callable[[Tensor, slice], Tensor]
"""Summed, from the logits of some rows of a batch, and which rows these are."""

BeforeStep = Callable[[Moment], None]
"""Hears of every step before it is made; raises to stop."""


class Training:
    """Adapters of one model on their way.

    The model is in evaluation mode: dropout would be the only thing that is random, and a student
    that drops what its teacher does not has more to make up for.

    Args:
        model: with adapters.
        teacher: the dense model, where the loss is `distill`.
        parameters: of the adapters.
        sequences: (n, sequence_length) tokens, taken in order, each once.
        config: how.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        parameters: Sequence[nn.Parameter],
        sequences: Tensor,
        config: RecoveryConfig,
    ) -> None:
        self._model, self._teacher = model.train(False), teacher
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
        self, before_step: BeforeStep, place: LayerCheckpoints | None, key: str
    ) -> tuple[StoppedBy, list[str]]:
        """Train to the end, from where an earlier run was stopped.

        Args:
            before_step: told how far it is before each step.
            place: where it is kept; None keeps nothing.
            key: names all that the training depends on.

        Returns:
            Which bound was reached, and what went wrong without doing harm.

        Raises:
            NumericalError: if the loss or its gradient is not finite.
        """
        file = TrainingFile(place, key, self._parameters, self._optimizer)
        self.state = file.restore()
        troubles: list[str] = []
        while (stopped_by := self._stopped_by()) is None:
            before_step(self.moment())
            self._timed_step()
            trouble = file.save(self.state, at_once=self._stopped_by() is not None)
            if trouble is not None and trouble not in troubles:
                troubles.append(trouble)
        return stopped_by, troubles

    def moment(self) -> Moment:
        """Where it is."""
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
        """One step by (batch, sequence_length) tokens; the loss before it, in nats a token."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        self._require_finite(loss, "loss")
        norm = nn.utils.clip_grad_norm_(self._parameters, LONGEST_GRADIENT)
        self._require_finite(float(norm), "loss's gradient")
        self._optimizer.step()
        return loss

    def _backward(self, batch: Tensor) -> float:
        with self._precision():
            hidden = _hidden(self._model, batch)
        head = OutputHead.of(self._model)
        if self._teacher is None:
            hidden = hidden[:, :-1]
            of_logits = _text_loss(batch[:, 1:].flatten())
        else:
            of_logits = _teacher_loss(self._teacher, batch, self._config.temperature)
        hidden = hidden.flatten(0, 1)

        def part_loss(leaf: Tensor, rows: slice) -> Tensor:
            with self._precision():
                logits = head.logits(leaf)
            return of_logits(logits, rows)

        total = backward_in_parts(hidden, rows_at_once(head), part_loss, scale=1.0 / len(hidden))
        return float(total) / len(hidden)

    def _precision(self) -> AbstractContextManager[Any]:
        """Adapters are float32; beside bfloat16 weights their products are bfloat16, too."""
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


def _teacher_loss(teacher: PreTrainedModel, batch: Tensor, temperature: float) -> LossOfRows:
    head = OutputHead.of(teacher)
    with torch.no_grad():
        hidden = _hidden(teacher, batch).flatten(0, 1)

    def loss(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            wanted = head.logits(hidden[rows])
        return divergence(logits, wanted, temperature)

    return loss


def _hidden(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Behind the trunk, (batch, sequence_length, hidden_size)."""
    hidden: Tensor = model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    return hidden
