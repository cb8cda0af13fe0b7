"""Least squares into the next projection (section 5 of docs/method.md).

After the choice, the kept inner activations `z_S = Pᵀz` must stand in for all of them. The new
output projection solves a ridge regression, split in two because its parts differ in noise: the
module's own output is nearly exact and wants almost no damping, the correction towards the dense
stream is noisy and wants much, how much being decided on held-out calibration sequences.

We shrink the first part towards the projected weights `PᵀW` instead of towards zero: with nothing
removed the solution is then the original weight exactly, whatever the damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.decoder_layer import LayerSettings, Linear, Norm
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class Dampings:
    """Relative damping of both parts of the regression."""

    own: Sequence[float]
    correction: Sequence[float]
    """Candidates, of which the one of least held-out error is taken, one part after the other."""
    per_dimension: bool = False
    """Each dimension is damped in proportion to its own energy."""

    def factor(self, gram: Tensor, damping: float) -> linalg.Factor:
        """The damped factor of a Gram matrix."""
        return linalg.damped_cholesky(gram, damping, per_dimension=self.per_dimension)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted output projection."""

    weight: Tensor
    """(kept, hidden_size), float64."""
    damping_own: float
    damping_correction: float | None
    relative_error: float
    """`E‖target - ẑ‖² / E‖target‖²` over the calibration tokens."""


def project(moments: Moments, basis: Tensor) -> Moments:
    """Moments of `Pᵀz` from those of `z`; `basis` P is (width, kept)."""
    wide = basis.to(moments.gram)
    return Moments(
        gram=wide.mT @ moments.gram @ wide,
        cross=wide.mT @ moments.cross,
        correction=wide.mT @ moments.correction,
        energy=moments.energy,
        tokens=moments.tokens,
    )


def select(moments: Moments, kept: Tensor) -> Moments:
    """Moments of the kept coordinates of `z`; `kept` is (kept,)."""
    return Moments(
        gram=moments.gram[kept][:, kept],
        cross=moments.cross[kept],
        correction=moments.correction[kept],
        energy=moments.energy,
        tokens=moments.tokens,
    )


def _excess(moments: Moments, weight: Tensor) -> float:
    """`E‖target - Wᵀz‖² - E‖target‖²`: what weights are compared by."""
    target = moments.cross + moments.correction
    return float((weight * (moments.gram @ weight - 2 * target)).sum())


def squared_error(moments: Moments, weight: Tensor) -> float:
    """`E‖target - Wᵀz‖²` of any weight (width, hidden_size), from moments alone."""
    return max(moments.energy + _excess(moments, weight), 0.0)


def _own_part(
    factor: linalg.Factor, moments: Moments, prior: Tensor | None, missing: Tensor | None = None
) -> Tensor:
    """Ridge solution for the module's own output, shrunk towards `prior` or towards zero.

    `missing` is `_missing` of the same, for those who solve with several dampings.
    """
    solved = factor.solve(_missing(moments, prior) if missing is None else missing)
    return solved if prior is None else solved.add_(prior.to(moments.gram))


def _missing(moments: Moments, prior: Tensor | None) -> Tensor:
    """What the prior leaves to be explained."""
    if prior is None:
        return moments.cross
    return moments.cross - moments.gram @ prior.to(moments.gram)


def choose_dampings(
    fit: Moments, held_out: Moments | None, prior: Tensor | None, dampings: Dampings
) -> tuple[float, float | None]:
    """The candidates whose solutions on `fit` have the least error on `held_out`.

    The own part is chosen against the module's own output, then the correction on top of it. The
    correction's is None where there is none to make.
    """
    corrects = bool(fit.correction.any()) and len(dampings.correction) > 0
    own, correction = dampings.own[0], dampings.correction[0] if corrects else None
    if held_out is not None and len(dampings.own) > 1:
        own = _own_damping(fit, held_out, prior, dampings)
    if held_out is not None and corrects and len(dampings.correction) > 1:
        correction = _correction_damping(fit, held_out, prior, own, dampings)
    return own, correction


def _own_damping(
    fit: Moments, held_out: Moments, prior: Tensor | None, dampings: Dampings
) -> float:
    """The candidate that predicts the module's own output best."""
    target = replace(held_out, correction=torch.zeros_like(held_out.correction))
    missing = _missing(fit, prior)

    def error(damping: float) -> float:
        factor = dampings.factor(fit.gram, damping)
        return _excess(target, _own_part(factor, fit, prior, missing))

    return min(dampings.own, key=error)


def _correction_damping(
    fit: Moments,
    held_out: Moments,
    prior: Tensor | None,
    own: float,
    dampings: Dampings,
) -> float:
    """The candidate that, on top of the own part, predicts the target best."""
    part = _own_part(dampings.factor(fit.gram, own), fit, prior)

    def error(damping: float) -> float:
        factor = dampings.factor(fit.gram, damping)
        return _excess(held_out, part + factor.solve(fit.correction))

    return min(dampings.correction, key=error)


def fit_output(
    fit: Moments, held_out: Moments | None, prior: Tensor | None, dampings: Dampings
) -> Fit:
    """Fit the output projection of a pruned module.

    Args:
        fit: moments of the kept activations over most calibration sequences.
        held_out: the same over the other sequences, or None where there is nothing to choose.
        prior: projected original weight `PᵀW` (kept, hidden_size), or None to shrink to zero.
        dampings: of both parts.

    Raises:
        NumericalError: if the damping ladder ends.
    """
    everything = fit if held_out is None else fit + held_out
    own, chosen = choose_dampings(fit, held_out, prior, dampings)
    factor = dampings.factor(everything.gram, own)
    weight = _own_part(factor, everything, prior)
    if chosen is not None:
        noisy = dampings.factor(everything.gram, chosen)
        weight = weight + noisy.solve(everything.correction)
        chosen = noisy.damping
    return Fit(
        weight=weight,
        damping_own=factor.damping,
        damping_correction=chosen,
        relative_error=relative_error(everything, weight),
    )


def relative_error(moments: Moments, weight: Tensor) -> float:
    """`squared_error` over the target's energy; 0 for a target that is zero."""
    return squared_error(moments, weight) / moments.energy if moments.energy > 0 else 0.0


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
    settings: LayerSettings

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
            added=decoder_layer.apply_norm(projected, self.norm, self.settings),
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
