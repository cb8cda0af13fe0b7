"""What a choice was made by, thinned to what a report can draw: eigenvalues, losses, scores.

A spectrum is over the ranks of a dimension, the most valuable first, so that a cut is a place in
it. Values are shares: what follows from the scale of a layer is not of interest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

POINTS = 40
"""Ranks that are kept of a spectrum, about."""
_DIGITS = 4

Dimension = Literal["value dims", "rotary pairs", "MLP neurons"]
Measure = Literal["eigenvalue", "loss", "score"]
"""Of the weighted value moment; predicted loss of being the next to go (section 3); or what the
method ranks by where it predicts nothing."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Shares of all that a dimension has, by rank."""

    dimension: Dimension
    measure: Measure
    size: int
    """Ranks there are."""
    kept: int
    """Those before the cut."""
    kept_share: float
    """Of the sum."""
    ranks: tuple[int, ...]
    """From 0, ascending; both sides of the cut are among them."""
    values: tuple[float, ...]
    """Of these ranks, as parts of the sum."""


def by_scores(dimension: Dimension, measure: Measure, scores: Tensor, kept: int) -> Spectrum:
    """Of scores (…, ranks), which every head orders for itself; heads are added up rank by rank."""
    ordered = scores.double().clamp_min(0.0).sort(dim=-1, descending=True).values
    return _thinned(dimension, measure, ordered.reshape(-1, ordered.shape[-1]).sum(0), kept)


def by_losses(dimension: Dimension, losses: Tensor, kept: int) -> Spectrum:
    """Of predicted losses by the number that is kept, (ranks + 1,).

    A rank's value is the loss of going down to it from one more. Where keeping none has no price
    the first rank has the second's.
    """
    marginal = (losses[:-1] - losses[1:]).double().clamp_min(0.0)
    if not bool(marginal[0].isfinite()) and marginal.shape[0] > 1:
        marginal[0] = marginal[1]
    return _thinned(dimension, "loss", marginal, kept)


def _thinned(dimension: Dimension, measure: Measure, values: Tensor, kept: int) -> Spectrum:
    size = values.shape[0]
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    ends = {0, size - 1, max(kept - 1, 0), min(kept, size - 1)}
    even = torch.linspace(0, size - 1, min(POINTS, size)).round().long().tolist()
    ranks = tuple(sorted({*even, *ends}))
    return Spectrum(
        dimension=dimension,
        measure=measure,
        size=size,
        kept=kept,
        kept_share=float(shares[:kept].sum()),
        ranks=ranks,
        values=tuple(float(f"{one:.{_DIGITS}g}") for one in shares[list(ranks)].tolist()),
    )
