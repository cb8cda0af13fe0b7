"""The space in which a module's output projection is fitted: that of the residual stream.

Without an output norm a module adds `W z` and nothing is to be done. With one (Gemma) it adds
`w ∘ Wz / r`, r² = mean((Wz)²) + ε, which is not linear in z, but is in `z/r` once r is known: it is
taken from the dense projection on the same stream. So everything that follows (choice, basis, least
squares) works with

    inner activations  z/r        (the constant that stands for a bias becomes 1/r)
    output rows        W diag(w)
    targets            as the stream has them

and the solution V is turned back by dividing its columns by w. With nothing removed V is W diag(w)
and the result is W again. Otherwise the sliced module's norm divides by the rms of its own `V/w z`
and not by r; both agree as far as the fit succeeds.

Columns whose w is negligible add nothing to the stream, yet count in r: there the floor below
stands for w, so that they go on being fitted to what they were, and are never asked to correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import block
from intraslice_core.block import BlockSettings, Linear, Norm
from intraslice_core.linalg import WORKING_DTYPE

NEGLIGIBLE = 1e-3
"""Of an output norm's weight, in units of its root mean square."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One batch of a module's activations."""

    inner: Tensor
    """(…, width [+ 1]): what a fit reads, the constant of a bias at the end."""
    own: Tensor
    """(…, hidden_size): the un-pruned module's output as the fit sees it, linear in its `inner`."""
    added: Tensor
    """(…, hidden_size): what the un-pruned module adds to the stream."""


@dataclass(frozen=True, kw_only=True)
class OutputSpace:
    """A dense output projection together with the norm behind it, if there is one."""

    output: Linear
    norm: Norm | None
    settings: BlockSettings

    def rows(self) -> Tensor:
        """The projection by inner dimension, a bias as a last row: (width [+ 1], hidden_size)."""
        rows = self.output.weight.mT.to(WORKING_DTYPE)
        if self.output.bias is not None:
            rows = torch.cat((rows, self.output.bias.to(rows).unsqueeze(0)))
        scale, _ = self._column_scale()
        return rows if scale is None else rows * scale

    def solved(self, fitted: Tensor) -> Tensor:
        """A fitted (kept [+ 1], hidden_size) solution as rows of the projection itself."""
        scale, _ = self._column_scale()
        return fitted if scale is None else fitted / scale

    def observe(self, dense_inner: Tensor, inner: Tensor) -> Observation:
        """What a fit reads of one batch.

        Args:
            dense_inner: (…, width), from the un-pruned module.
            inner: (…, width), from the pruned one.
        """
        projected = self.output(dense_inner)
        if self.output.bias is not None:
            inner = torch.cat((inner, torch.ones_like(inner[..., :1])), dim=-1)
        scale, _ = self._column_scale()
        if self.norm is None or scale is None:
            return Observation(inner=inner, own=projected, added=projected)
        wide = projected.float()
        rms = (wide.square().mean(-1, keepdim=True) + self.settings.norm_eps).sqrt()
        return Observation(
            inner=inner.float() / rms,
            own=wide / rms * scale.float(),
            added=block.apply_norm(projected, self.norm, self.settings),
        )

    def correction(self, target: Tensor, seen: Observation) -> Tensor:
        """What is missing to the target in the columns that can give it, (…, hidden_size)."""
        missing = target - seen.added
        _, usable = self._column_scale()
        return missing if usable is None else missing * usable

    def _column_scale(self) -> tuple[Tensor | None, Tensor | None]:
        """The norm's effective weight with its floor, float64, and where it is above the floor."""
        if self.norm is None:
            return None, None
        weight = self.norm.weight.to(WORKING_DTYPE)
        if self.settings.norm_type == "rms_plus_one":
            weight = weight + 1.0
        floor = NEGLIGIBLE * weight.square().mean().sqrt()
        usable = weight.abs() > floor
        return torch.where(usable, weight, floor.clamp_min(1e-30)), usable
