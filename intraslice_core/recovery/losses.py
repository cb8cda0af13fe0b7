"""What a recovery makes small, on logits that are never held all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core.estimates.memory import LOGITS_AT_ONCE
from intraslice_core.evaluation.output_head import OutputHead


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
