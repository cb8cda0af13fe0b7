"""Spectra for the report: eigenvalues, losses or scores that a selection was made by (section 10).

A spectrum lists one dimension's values by rank, the most valuable first, so that a cut is a
position in it. Values are shares of their sum, because a layer's absolute scale does not matter.
They are thinned to the number of points that a plot can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

POINTS = 40
"""Approximate number of ranks stored of a spectrum."""
_DIGITS = 4

Dimension = Literal[
    "value dims",
    "rotary pairs",
    "MLP neurons",
    "attention reads",
    "attention writes",
    "MLP reads",
    "MLP writes",
]
"""Dimension that a selection has cut; reads and writes are of the residual stream."""
Measure = Literal["eigenvalue", "loss", "score"]
"""Unit of the values.

`eigenvalue` of the weighted value moment; predicted `loss` of the next removal (docs/method.md,
section 3); or the method's ranking `score` where it predicts no loss.
"""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Shares of a dimension's total by rank."""

    dimension: Dimension
    measure: Measure
    size: int
    """Number of ranks in the dense layer."""
    kept: int
    """Number of ranks before the cut."""
    kept_share: float
    """Share of the sum that the kept ranks hold."""
    ranks: tuple[int, ...]
    """Stored ranks from 0, ascending; both sides of the cut are among them."""
    values: tuple[float, ...]
    """Shares of the sum at `ranks`."""


def score_spectrum(dimension: Dimension, measure: Measure, scores: Tensor, kept: int) -> Spectrum:
    """Return the spectrum of scores (…, ranks); each head is sorted by itself, then summed."""
    ordered = scores.double().clamp_min(0.0).sort(dim=-1, descending=True).values
    return _thinned(dimension, measure, ordered.reshape(-1, ordered.shape[-1]).sum(0), kept)


def loss_spectrum(dimension: Dimension, losses: Tensor, kept: int) -> Spectrum:
    """Return the spectrum of predicted losses by the number kept, (ranks + 1,).

    A rank's value is the loss of removing it after all later ranks. Where keeping none has no
    finite loss, the first rank takes the second's value.
    """
    marginal = (losses[:-1] - losses[1:]).double().clamp_min(0.0)
    if not bool(marginal[0].isfinite()) and marginal.shape[0] > 1:
        marginal[0] = marginal[1]
    return _thinned(dimension, "loss", marginal, kept)


def _thinned(dimension: Dimension, measure: Measure, values: Tensor, kept: int) -> Spectrum:
    """Return the spectrum of values in rank order, (ranks,), float64, at about `POINTS` ranks."""
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
        values=tuple(float(f"{share:.{_DIGITS}g}") for share in shares[list(ranks)].tolist()),
    )
