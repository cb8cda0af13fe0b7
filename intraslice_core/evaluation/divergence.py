"""KL divergence and top-1 agreement of the dense and the compressed model.

Both are exact over the whole vocabulary at every scored position, and no logits are stored: while
the dense model is scored, its final hidden states are kept, and while the compressed model is
scored, the dense logits are computed from them again, block by block (docs/method.md, section 11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.device import HostMemory
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.perplexity import OutputHead
from intraslice_core.statistics import kl_divergence

_HIDDEN, _SUMS, _COUNTS = "hidden", "sums", "counts"
"""Names of what an interrupted evaluation saves of its observers."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Difference of the compressed model's predictions from the dense model's on one text."""

    kl: float
    """Mean KL(dense ‖ compressed) in nats per token."""
    kl_stderr: float | None
    """Standard error of `kl` over the positions; None for a single position."""
    top1_agreement: float
    """Fraction of positions at which both models' most likely tokens are equal."""


@dataclass(frozen=True, kw_only=True)
class DenseOutputs:
    """Outputs of the dense model that determine its logits at all scored positions."""

    head: OutputHead
    """Output head, on the CPU."""
    hidden: dict[str, Tensor]
    """Final hidden states by text, (positions, hidden_size), in the model's dtype, on the CPU."""


class HiddenStateRecorder:
    """Observer of the dense model that keeps its final hidden states.

    Args:
        memory: storage of the hidden states.
        positions: upper bound of the number of scored positions.
    """

    def __init__(self, memory: HostMemory, positions: int) -> None:
        self._memory = memory
        self._capacity = positions
        self._states: Tensor | None = None
        self._positions = 0

    def __call__(self, hidden: Tensor, predicted: Tensor) -> None:  # noqa: ARG002 (of an observer)
        """Keep a block of hidden states, (rows, hidden_size)."""
        if self._states is None:
            self._states = self._memory.empty((self._capacity, hidden.shape[1]), hidden.dtype)
        self._states[self._positions : self._positions + len(hidden)] = hidden
        self._positions += len(hidden)

    def state(self) -> dict[str, Tensor]:
        """Return what was observed, by name, for `restore`."""
        return {_HIDDEN: self.states}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what an interrupted evaluation has observed."""
        hidden = state[_HIDDEN]
        self._positions = 0
        self(hidden, hidden)

    @property
    def states(self) -> Tensor:
        """Hidden states of all observed positions, (positions, hidden_size)."""
        assert self._states is not None  # `perplexity` raises if nothing was scored
        return self._states[: self._positions]


class DivergenceMeter:
    """Observer of the compressed model that compares its logits with the dense model's.

    Args:
        hidden: final hidden states of the dense model, (positions, hidden_size), in the order in
            which the compressed model is scored.
        head: output head of the dense model, on the compressed model's device.
    """

    def __init__(self, hidden: Tensor, head: OutputHead) -> None:
        self._hidden = hidden
        self._head = head
        self._positions = 0
        # On the device of the predictions, so that no block is waited for.
        self._sum = self._sum_of_squares = torch.zeros((), dtype=torch.float64)
        self._agreeing = torch.zeros((), dtype=torch.int64)

    def __call__(self, hidden: Tensor, predicted: Tensor) -> None:  # noqa: ARG002 (of an observer)
        """Compare a block of log-probabilities, (rows, vocabulary), with the dense model's."""
        rows = slice(self._positions, self._positions + len(predicted))
        dense = self._head.log_probabilities(self._hidden[rows].to(predicted.device))
        agreeing = (dense.argmax(-1) == predicted.argmax(-1)).sum()
        self._agreeing = self._agreeing + agreeing
        divergences = kl_divergence(dense, predicted)
        self._sum = self._sum + divergences.sum()
        self._sum_of_squares = self._sum_of_squares + divergences.square().sum()
        self._positions += len(predicted)

    def state(self) -> dict[str, Tensor]:
        """Return the sums over the observed positions, by name, for `restore`."""
        sums = torch.stack((self._sum.cpu(), self._sum_of_squares.cpu()))
        counts = torch.tensor([int(self._agreeing), self._positions])
        return {_SUMS: sums, _COUNTS: counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the sums of an interrupted evaluation."""
        self._sum, self._sum_of_squares = state[_SUMS].unbind()
        self._agreeing, positions = state[_COUNTS].unbind()
        self._positions = int(positions)

    def divergence(self) -> Divergence:
        """Return the means over all positions.

        Raises:
            NumericalError: if a logit of either model is not finite.
        """
        count = self._positions
        assert count == len(self._hidden)  # both models are scored on the same tokens
        mean, squares = self._sum.item() / count, self._sum_of_squares.item()
        if not math.isfinite(squares):
            raise NumericalError("the model's logits are not finite", module="output head")
        variance = max(squares / count - mean**2, 0.0)
        return Divergence(
            kl=mean,
            kl_stderr=math.sqrt(variance / (count - 1)) if count > 1 else None,
            top1_agreement=self._agreeing.item() / count,
        )
