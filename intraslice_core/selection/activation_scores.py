"""Scores of output projections' inputs by activations and weights, without refit.

FLAP (arXiv 2312.11983) and Wanda (arXiv 2306.11695, structured as in FLAP's code, "Wanda-sp") score
an inner activation of a module by its spread or its size and by the weights that read it, TransAct
(arXiv 2407.05690) by its size alone. Each score needs the mean and the mean square of the
activation alone, no correlations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intraslice_core import linalg


def fluctuation_score(mean: Tensor, energy: Tensor, output: Tensor) -> Tensor:
    """Return FLAP's weighted input feature variance `(E[z_j²] - E[z_j]²) · ‖W[j, :]‖²`, (width,).

    It is the squared output error of replacing an activation by its mean, which a bias can hold.

    Args:
        mean: `E[z]`, (width,).
        energy: `E[z²]`, (width,).
        output: output projection by rows of activations, (width, hidden_size).
    """
    variance = (energy - mean.square()).clamp_min(0.0)
    return variance * output.to(variance).square().sum(-1)


def wanda_score(energy: Tensor, output: Tensor) -> Tensor:
    """Return Wanda's score of whole rows, `√E[z_j²] · mean_i |W[j, i]|`, (width,).

    Args:
        energy: `E[z²]`, (width,).
        output: output projection by rows of activations, (width, hidden_size).
    """
    return energy.clamp_min(0.0).sqrt() * output.to(energy).abs().mean(-1)


def head_lengths(energy: Tensor, heads: int) -> Tensor:
    """Return TransAct's score of each input's head, (heads · head_dim,).

    A head scores the mean length `√E[z_j²]` of its inputs plus `10 / head_dim` times the largest.

    Args:
        energy: `E[z²]`, (heads · head_dim,).
        heads: query heads.
    """
    lengths = energy.sqrt().view(heads, -1)
    width = lengths.shape[1]
    scores = lengths.mean(1) + 10.0 / width * lengths.amax(1)
    return scores.repeat_interleave(width)


def standardised(scores: Tensor) -> Tensor:
    """Return scores less their mean over their standard deviation, along the last dimension.

    FLAP compares modules of different scale by it. Equal scores become 0.

    Args:
        scores: of one module, or of several in rows, (…, width).

    Raises:
        NumericalError: if a score is not finite.
    """
    scores = linalg.require_finite(scores, "a score")
    centred = scores - scores.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    # Rounding leaves a spread of the size of eps where all scores are equal.
    eps = torch.finfo(scores.dtype).eps * scores.abs().amax(-1, keepdim=True)
    return torch.where(spread > 8.0 * eps, centred / spread, torch.zeros_like(centred))
