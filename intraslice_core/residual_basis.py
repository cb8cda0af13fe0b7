"""Bases of the residual stream and weights in them (SliceGPT, arXiv 2401.15024).

A basis of a site, the input of a norm, has orthonormal columns `P = Q D`: the leading principal
components of the stream there. A hidden state is then `x P`. Everything here is float64 but for the
result's bases, which are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.decoder_layer import LayerSettings, Linear, Norm
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.statistics import second_moment_sum

CENTRING = "layer"
"""Norm type that subtracts the mean, which is folded into whatever writes to the stream."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Leading principal components of the residual stream at one site."""

    columns: Tensor
    """Orthonormal columns, (hidden_size, width), float32."""
    explained_energy: float
    """Share of the stream's energy that they span, in [0, 1]."""


class StreamMoment:
    """Second moment `Σ_t x_t x_tᵀ` of the residual stream at one site, batch by batch."""

    def __init__(self, hidden_size: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._total = torch.zeros(hidden_size, hidden_size, dtype=WORKING_DTYPE, device=device)
        self._ranks = ranks

    def add(self, stream: Tensor) -> None:
        """Add a batch of hidden states, (…, hidden_size)."""
        rows = stream.flatten(0, -2)
        self._total += second_moment_sum(rows, rows)

    def basis(self, width: int, owner: int = MAIN) -> Basis:
        """Return the leading principal components of all ranks' tokens (equation 7).

        The sign of each makes its largest entry positive, so that they do not depend on the solver.

        Args:
            width: number of components.
            owner: rank that computes them.

        Raises:
            NumericalError: if a hidden state was not finite.
        """
        self._ranks.sum_([self._total])
        return self._ranks.computed(owner, lambda: self._basis(width))

    def _basis(self, width: int) -> Basis:
        """Return the leading principal components of the sum."""
        values, vectors = linalg.eigenbasis(self._total)
        leading = vectors[:, :width]
        peaks = leading.gather(0, leading.abs().argmax(0, keepdim=True))
        energy = values[:width].sum() / values.sum().clamp_min(torch.finfo(WORKING_DTYPE).tiny)
        return Basis(
            columns=(leading * torch.where(peaks < 0, -1.0, 1.0)).float().contiguous(),
            explained_energy=float(energy),
        )


def centred(stream: Tensor, norm_type: str) -> Tensor:
    """Return hidden states, (…, hidden_size), without their mean where the norms subtract it."""
    return stream - stream.mean(-1, keepdim=True) if norm_type == CENTRING else stream


def writing_columns(basis: Tensor, norm_type: str) -> Tensor:
    """Return the columns that outputs are projected on, (hidden_size, width), float64.

    They contain the centring `I - 11ᵀ / hidden_size` where the norms have it (section 3.1).
    """
    wide = basis.to(WORKING_DTYPE)
    return wide - wide.mean(0) if norm_type == CENTRING else wide


def unit_norm(width: int, like: Tensor) -> Norm:
    """Return an RMS norm without effect of its weight, dtype and device of `like`."""
    return Norm(weight=like.new_ones(width))


def sliced_settings(settings: LayerSettings, hidden_size: int) -> LayerSettings:
    """Return the layer's settings with RMS norms over the dense width."""
    norm_type = "rms" if settings.norm_type == CENTRING else settings.norm_type
    return replace(settings, norm_type=norm_type, norm_size=hidden_size)


def reading(linear: Linear, norm: Norm, basis: Tensor) -> Linear:
    """Return a projection that reads the sliced stream through a norm without weight.

    With the dense norm's weight `g` and bias `h` it is `W diag(g) P`, with bias `b + W h`.

    Args:
        linear: projection of the dense layer, (rows, hidden_size).
        norm: norm of the dense layer before it.
        basis: of the site, (hidden_size, width).
    """
    weight, gain = linear.weight.to(WORKING_DTYPE), norm.weight.to(WORKING_DTYPE)
    bias = linear.bias
    if norm.bias is not None:
        added = weight @ norm.bias.to(WORKING_DTYPE)
        bias = added if bias is None else bias.to(WORKING_DTYPE) + added
    like = linear.weight
    return Linear(
        weight=((weight * gain) @ basis.to(WORKING_DTYPE)).to(like),
        bias=None if bias is None else bias.to(like),
    )


def writing(linear: Linear, columns: Tensor) -> Linear:
    """Return a projection that writes to the sliced stream, `Pᵀ W`, with bias `Pᵀ b`.

    Args:
        linear: projection of the dense layer, (hidden_size, columns).
        columns: from `writing_columns`, (hidden_size, width).
    """
    weight = columns.mT @ linear.weight.to(WORKING_DTYPE)
    bias = None if linear.bias is None else columns.mT @ linear.bias.to(WORKING_DTYPE)
    like = linear.weight
    return Linear(weight=weight.to(like), bias=None if bias is None else bias.to(like))


def shortcut(before: Tensor, after: Tensor | None, like: Tensor) -> Tensor:
    """Return the matrix of a residual connection, (width after, width before), dtype of `like`.

    Args:
        before: basis before the module, (hidden_size, width before).
        after: basis after it; None for the dense stream.
        like: tensor of the result's dtype and device.
    """
    wide = before.to(WORKING_DTYPE)
    matrix = wide if after is None else after.to(WORKING_DTYPE).mT @ wide
    return matrix.to(like)


def in_dense_basis(sliced: Tensor, basis: Tensor) -> Tensor:
    """Return hidden states, (…, width), in the basis of the dense model, (…, hidden_size)."""
    return F.linear(sliced, basis.to(sliced))
