"""Least squares into the next projection (section 5 of algorithm.md).

After the choice, the kept inner activations `z_S = Pᵀz` must stand in for all of them. The new
output projection solves a ridge regression, split in two because its parts differ in noise: the
module's own output is nearly exact and wants almost no damping, the correction towards the dense
stream is noisy and wants much, how much being decided on held-out calibration sequences.

We shrink the first part towards the projected weights `PᵀW` instead of towards zero: with nothing
removed the solution is then the original weight exactly, whatever the damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from intraslice_core import linalg
from intraslice_core.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class Dampings:
    """Relative damping of both parts of the regression."""

    own: float
    correction: Sequence[float]
    """Candidates for the correction; the one of least held-out error is taken."""


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


def squared_error(moments: Moments, weight: Tensor) -> float:
    """`E‖target - Wᵀz‖²` of any weight (width, hidden_size), from moments alone."""
    target = moments.cross + moments.correction
    explained = 2 * (weight * target).sum() - (weight * (moments.gram @ weight)).sum()
    return max(moments.energy - float(explained), 0.0)


def _own_part(factor: linalg.Factor, moments: Moments, prior: Tensor | None) -> Tensor:
    """Ridge solution for the module's own output, shrunk towards `prior` or towards zero."""
    if prior is None:
        return factor.solve(moments.cross)
    wide = prior.to(moments.gram)
    return wide + factor.solve(moments.cross - moments.gram @ wide)


def _correction_damping(
    fit: Moments, held_out: Moments, prior: Tensor | None, dampings: Dampings
) -> float:
    """The candidate whose solution on `fit` has the least error on `held_out`."""
    own = _own_part(linalg.damped_cholesky(fit.gram, dampings.own), fit, prior)

    def error(damping: float) -> float:
        factor = linalg.damped_cholesky(fit.gram, damping)
        return squared_error(held_out, own + factor.solve(fit.correction))

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
    factor = linalg.damped_cholesky(everything.gram, dampings.own)
    weight = _own_part(factor, everything, prior)
    chosen = None
    if everything.correction.any():
        chosen = dampings.correction[0]
        if held_out is not None:
            chosen = _correction_damping(fit, held_out, prior, dampings)
        noisy = linalg.damped_cholesky(everything.gram, chosen)
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
