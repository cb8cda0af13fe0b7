"""Means and mean squares of inner activations, streamed; memory is linear in the width.

Methods that score single activations (FLAP, Wanda, 2SSP) need no correlations between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class DiagonalMoments:
    """Moments of each inner activation of a module, (width,) each, float64."""

    mean: Tensor
    """`E[z_j]` over tokens."""
    energy: Tensor
    """`E[z_j²]` over tokens."""
    norm: Tensor
    """Mean over sequences of `√Σ_t z_tj²`, the sum over the sequence's tokens."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments by name."""
        return {"mean": self.mean, "energy": self.energy, "norm": self.norm}

    def to(self, device: torch.device) -> DiagonalMoments:
        """Return the moments on a device."""
        return DiagonalMoments(
            **{name: tensor.to(device) for name, tensor in self.tensors().items()}
        )


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Moments of the inner activations of both modules of one layer."""

    attention: DiagonalMoments
    """Moments of `o`, the output projection's inputs."""
    mlp: DiagonalMoments
    """Moments of `u`, the down projection's inputs."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        modules = (self.attention, self.mlp)
        return sum(part.nbytes for module in modules for part in module.tensors().values())

    def to(self, device: torch.device) -> LayerActivations:
        """Return the moments on a device."""
        return LayerActivations(attention=self.attention.to(device), mlp=self.mlp.to(device))


class DiagonalAccumulator:
    """Sums of one module's inner activations, their squares and their norms by sequence.

    Args:
        prefix_length: positions of the prefix at the beginning of every sequence. They are left
            out: the first position has massive activations in many models, which would decide all
            scores.
        ranks: those whose tokens are averaged over; each of them has some.
    """

    def __init__(self, prefix_length: int = 0, ranks: Ranks = ALONE) -> None:
        self._prefix_length, self._ranks = prefix_length, ranks
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._tokens = self._sequences = 0

    def add(self, inner: Tensor) -> None:
        """Add one batch, (batch, sequence, width)."""
        text = inner[:, self._prefix_length :]
        squares = text.to(torch.promote_types(text.dtype, torch.float32)).square()
        by_sequence = squares.sum(1, dtype=WORKING_DTYPE)
        added = (
            text.sum((0, 1), dtype=WORKING_DTYPE),
            by_sequence.sum(0),
            by_sequence.sqrt().sum(0),
        )
        if self._sums is None:
            self._sums = added
        else:
            for total, part in zip(self._sums, added, strict=True):
                total.add_(part)
        self._sequences += text.shape[0]
        self._tokens += text.shape[0] * text.shape[1]

    def moments(self) -> DiagonalMoments:
        """Return the moments.

        Raises:
            NumericalError: if no tokens were added or an activation was not finite.
        """
        if self._sums is None or self._tokens == 0:
            raise NumericalError("no tokens were seen")
        self._ranks.sum_(self._sums)
        facts = self._ranks.totals([self._tokens, self._sequences])
        self._tokens, self._sequences = map(int, facts)
        self._ranks = ALONE  # the sums are of all of them now
        mean, energy, norm = self._sums
        if not all(bool(torch.isfinite(total).all()) for total in self._sums):
            raise NumericalError("an inner activation is NaN or infinite")
        return DiagonalMoments(
            mean=mean / self._tokens, energy=energy / self._tokens, norm=norm / self._sequences
        )
