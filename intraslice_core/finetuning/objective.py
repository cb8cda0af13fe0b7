"""Losses of the fine-tuning: cross-entropy, divergence from the teacher, and hidden states' error.

Logits are never held for a whole batch: losses and their gradients are taken a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice_core.config import RecoveryConfig
from intraslice_core.cost_model.memory import LOGITS_AT_ONCE
from intraslice_core.evaluation.perplexity import OutputHead

_NO_TARGET = -100
"""Target of positions that predict nothing, as in torch's cross-entropy."""


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of float32 logits (rows, vocabulary) and tokens (rows,)."""
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=_NO_TARGET)


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T² Σ KL(teacher ‖ student)` over rows at temperature T, in nats.

    T² keeps the gradient's magnitude when T changes (Hinton et al. 2015, section 2).

    Args:
        logits: of the student, (rows, vocabulary), float32.
        teacher: logits of the dense model, of the same shape, without a graph.
        temperature: softens both distributions; 1 leaves them as they are.
    """
    student_log = F.log_softmax(logits / temperature, -1)
    teacher_log = F.log_softmax(teacher / temperature, -1)
    summed = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return temperature**2 * summed


def hidden_state_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the sum over positions of the layers' mean relative error `‖s - t‖² / ‖t‖²`.

    Each position is relative to its own norm: otherwise the few positions with massive
    activations would outweigh all others.

    Args:
        student: hidden states after each layer, (batch, length, hidden_size) each.
        teacher: those of the dense model, without a graph.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(student, teacher, strict=True):
        target = theirs.float()
        norms = target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        total = total + ((ours.float() - target).square().sum(-1) / norms).sum()
    return total / len(student)


# -- logits a few rows at a time -----------------------------------------------------------------

LossOfPart = Callable[[Tensor, slice], Tensor]
"""Returns the summed loss of some rows of hidden states and their slice."""


def rows_at_once(head: OutputHead) -> int:
    """Return the number of rows whose logits take a few dozen megabytes."""
    return max(1, LOGITS_AT_ONCE // int(head.head.weight.shape[0]))


class _SumOverParts(torch.autograd.Function):
    """Sum of a loss over rows, whose graph is in memory for a few rows at a time only.

    The gradient is taken in the forward pass, part by part, and scaled in the backward pass.
    """

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, part_loss: LossOfPart, rows: int, *weights: Tensor
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        sums = [torch.zeros_like(weight) for weight in weights]
        for start in range(0, len(hidden), rows):
            place = slice(start, min(start + rows, len(hidden)))
            with torch.enable_grad():
                leaf = hidden[place].detach().requires_grad_(True)
                loss = part_loss(leaf, place)
            gradient[place], *parts = torch.autograd.grad(loss, (leaf, *weights))
            for summed, part in zip(sums, parts, strict=True):
                summed += part
            total += loss.detach()
        context.save_for_backward(gradient, *sums)
        return total

    @staticmethod
    def backward(context: Any, *outputs: Tensor) -> Any:
        (factor,) = outputs
        gradient, *sums = context.saved_tensors
        return gradient * factor, None, None, *(summed * factor for summed in sums)


def sum_over_parts(
    hidden: Tensor, rows: int, part_loss: LossOfPart, weights: Sequence[Tensor] = ()
) -> Tensor:
    """Return a differentiable sum of a loss over rows, computed a few rows at a time.

    Args:
        hidden: (n, hidden_size).
        rows: number of rows per part.
        part_loss: returns the loss of a part from its rows of `hidden` and their slice.
        weights: parameters that `part_loss` depends on and that need gradients.

    Returns:
        Scalar, float32.
    """
    total: Tensor = _SumOverParts.apply(hidden, part_loss, rows, *weights)  # type: ignore[no-untyped-call]
    return total


# -- the loss of a batch -------------------------------------------------------------------------


class Objective(nn.Module):
    """The weighted loss of a student on a batch of windows.

    The model stays in evaluation mode. Dropout would be the only source of randomness, and a
    student with dropout has more to recover than its teacher asks for.

    Args:
        student: model to train.
        teacher: the dense model if a loss needs it; None otherwise.
        config: weights of the losses and temperature.
        prefix_length: positions of the prefix at the beginning of every window; no loss is of them.
        dtype: of the student's products; weights and adapters in float32 are rounded to it.
        teacher_layers: for each layer of the student the teacher's whose output it replaces; None
            if both have the same layers.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        config: RecoveryConfig,
        prefix_length: int = 0,
        dtype: torch.dtype = torch.float32,
        teacher_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.student = student.train(False)
        self._teacher = (teacher,)  # in a tuple: not a submodule, nothing of it is trained
        self._weights = config.loss_weights
        self._temperature = config.temperature
        self._needs_logits = config.needs_logits
        self._first = max(prefix_length, 1)
        self._dtype = dtype
        self._teacher_layers = teacher_layers

    def forward(self, batch: Tensor) -> Tensor:
        """Return the sum over windows of the weighted mean losses per position.

        Args:
            batch: (windows, sequence_length), int64.

        Returns:
            Scalar, float32; divided by the number of windows it is the loss in nats per token, or
            without unit for `hidden`.
        """
        layers = self._weights.hidden > 0.0
        with self._precision():
            last, states = self._hidden(self.student, batch, layers=layers)
        (teacher,) = self._teacher
        teacher_last = teacher_states = None
        if teacher is not None:
            with torch.no_grad():
                teacher_last, teacher_states = self._hidden(teacher, batch, layers=layers)
        positions = last.shape[1]
        total = last.new_zeros((), dtype=torch.float32)
        if layers:
            compared = teacher_states or ()
            if self._teacher_layers is not None:
                compared = tuple(compared[layer] for layer in self._teacher_layers)
            error = hidden_state_error(states, compared)
            total = total + self._weights.hidden / positions * error
        if self._needs_logits:
            total = total + self._logits_loss(batch, last, teacher_last)
        return total

    def _hidden(
        self, model: PreTrainedModel, batch: Tensor, *, layers: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the last hidden states, and those after each layer if requested.

        They begin with the position that predicts the first token of the text.
        """
        output: Any = model.base_model(
            input_ids=batch, use_cache=False, output_hidden_states=layers
        )
        place = slice(self._first - 1, None)
        # The first entry is the embedding, which is not trained by adapters.
        states = output.hidden_states[1:] if layers else ()
        return output.last_hidden_state[:, place], tuple(state[:, place] for state in states)

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the student."""
        mixed = self._dtype == torch.bfloat16
        return torch.autocast(self.student.device.type, dtype=torch.bfloat16, enabled=mixed)

    def _logits_loss(self, batch: Tensor, last: Tensor, teacher_last: Tensor | None) -> Tensor:
        windows, positions = last.shape[:2]
        head = OutputHead.of(self.student)
        targets = batch.new_full((windows, positions), _NO_TARGET)
        targets[:, :-1] = batch[:, self._first :]
        targets = targets.flatten()
        ce_weight = self._weights.ce / (positions - 1)
        kl_weight = self._weights.distill / positions
        (teacher,) = self._teacher
        teacher_head = OutputHead.of(teacher) if teacher is not None and kl_weight else None
        teacher_rows = None if teacher_last is None else teacher_last.flatten(0, 1)

        def part_loss(leaf: Tensor, rows: slice) -> Tensor:
            with self._precision():
                logits = head.logits(leaf)
            loss = logits.new_zeros(())
            if ce_weight:
                loss = loss + ce_weight * next_token_loss(logits, targets[rows])
            if teacher_head is not None and teacher_rows is not None:
                with torch.no_grad():
                    wanted = teacher_head.logits(teacher_rows[rows])
                loss = loss + kl_weight * divergence(logits, wanted, self._temperature)
            return loss

        trained = [weight for weight in head.head.parameters() if weight.requires_grad]
        return sum_over_parts(last.flatten(0, 1), rows_at_once(head), part_loss, trained)
