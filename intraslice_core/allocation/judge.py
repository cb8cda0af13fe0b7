"""Comparison of plans by their divergence from the dense model (docs/method.md, section 4).

A plan is judged on held-out sequences of all kinds of calibration text, and compared with others
position by position. What decides is a difference beyond its own standard error, so that neither
rounding nor the choice of sequences turns a plan over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WORST_SHARE = 0.5
"""Weight of the worst kind of text, beside the mean over all kinds."""
MARGIN = 2.0
"""Standard errors by which a plan must be better to take another's place."""
_BLOCK = 32
"""Positions that count as one observation, because neighbouring positions are correlated."""


@dataclass(frozen=True, kw_only=True)
class HeldOutDivergence:
    """HeldOutDivergence of a compressed model from the dense one at every held-out position."""

    tokens: Tensor
    """KL(dense ‖ compressed) in nats, (sequences, positions), floating."""
    kinds: Tensor
    """Number of each sequence's kind of text, (sequences,), int64."""

    def by_kind(self) -> Tensor:
        """Return the mean of every kind, ascending by number, (kinds,), float64."""
        means = self.tokens.double().mean(1)
        return torch.stack([means[self.kinds == kind].mean() for kind in torch.unique(self.kinds)])

    @property
    def score(self) -> float:
        """Mean over the kinds plus `WORST_SHARE` of the worst kind, in nats per token."""
        means = self.by_kind()
        return float(means.mean() + WORST_SHARE * means.max())


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference between two plans' scores."""

    value: float
    """Score of the second plan less that of the first, in nats per token."""
    standard_error: float

    @property
    def favours_first(self) -> bool:
        """Return whether the first plan is better by more than `MARGIN` standard errors."""
        return self.value > MARGIN * self.standard_error


def difference(first: HeldOutDivergence, second: HeldOutDivergence) -> Difference:
    """Compare two plans on the same positions.

    The standard error is that of the mean over blocks of `_BLOCK` positions, by kind. It is
    infinite where a kind has a single position.

    Args:
        first: divergence with the plan that may take the other's place.
        second: divergence with the other plan, on the same sequences.
    """
    weights = _weights(first, second)
    value, variance = 0.0, 0.0
    gaps = second.tokens.double() - first.tokens.double()
    for weight, kind in zip(weights, torch.unique(first.kinds), strict=True):
        own = gaps[first.kinds == kind]
        value += weight * float(own.mean())
        variance += weight**2 * _variance_of_mean(own)
    return Difference(value=value, standard_error=math.sqrt(variance))


def _weights(first: HeldOutDivergence, second: HeldOutDivergence) -> list[float]:
    """Return the weights of the kinds; the worst is that of the larger divergence of both."""
    worst = int(torch.maximum(first.by_kind(), second.by_kind()).argmax())
    kinds = len(torch.unique(first.kinds))
    return [1.0 / kinds + WORST_SHARE * (number == worst) for number in range(kinds)]


def _variance_of_mean(gaps: Tensor) -> float:
    """Return the variance of the mean of (sequences, positions) from blocks of positions."""
    # Short sequences still give four blocks each.
    width = max(min(_BLOCK, gaps.shape[1] // 4), 1)
    blocks = gaps[:, : gaps.shape[1] // width * width].reshape(-1, width).mean(1)
    return float(blocks.var() / len(blocks)) if len(blocks) > 1 else math.inf
