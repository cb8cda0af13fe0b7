"""Choice of the dampings of a regression by held-out sequences (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.statistics import Moments

PROBES = 32
"""Number of random combinations of outputs by which dampings are compared."""


@dataclass(frozen=True, kw_only=True)
class Dampings:
    """Candidates for the relative dampings of both parts of the regression."""

    own: Sequence[float]
    """Candidates for λ₁, at least one."""
    correction: Sequence[float]
    """Candidates for λ₂; none disables the correction. Held-out error decides, λ₁ first."""
    per_dimension: bool = False
    """Damp each dimension in proportion to its own energy."""

    def matrix(self, gram: Tensor) -> linalg.DampedMatrix:
        """Return a Gram matrix, (n, n), to be factorised with these dampings.

        Raises:
            NumericalError: if the matrix is not finite.
        """
        return linalg.DampedMatrix(gram, per_dimension=self.per_dimension)


def excess_error(gram: Tensor, weight: Tensor, cross: Tensor) -> float:
    """Return `E‖target - Wᵀz‖² - E‖target‖²`, which suffices to compare weights."""
    return float((weight * (gram @ weight - 2 * cross)).sum())


def unexplained(moments: Moments, prior: Tensor | None) -> Tensor:
    """Return the cross moment that the prior does not explain, `R - H prior`."""
    if prior is None:
        return moments.cross
    if moments.residual is not None:
        return moments.residual
    return moments.cross - moments.gram @ prior.to(moments.gram)


def _probes(like: Tensor) -> Tensor | None:
    """Return random signs, (hidden_size, PROBES), over √PROBES; None for fewer than 2 · PROBES.

    The squared length of an error's product with them has the squared length of the error as its
    expectation. All dampings are compared by the same combinations, and each costs two products
    and a solve with `PROBES` columns instead of `hidden_size`.
    """
    hidden = like.shape[1]
    if hidden < 2 * PROBES:
        return None
    signs = torch.randint(0, 2, (hidden, PROBES), generator=torch.Generator().manual_seed(0))
    return signs.to(like).mul_(2).sub_(1).div_(PROBES**0.5)


def choose_dampings(
    fit: Moments, held_out: Moments | None, prior: Tensor | None, dampings: Dampings
) -> tuple[float, float | None]:
    """Return the dampings whose solutions on `fit` have the least error on `held_out`.

    λ₁ is chosen by the error of the module's own output, then λ₂ by the error of the full target.
    Without held-out moments the first candidates are taken. λ₂ is None without correction.

    Raises:
        NumericalError: if the damping ladder ends.
    """
    has_correction = bool(fit.correction.any()) and len(dampings.correction) > 0
    own, correction = dampings.own, dampings.correction if has_correction else ()
    if held_out is not None and max(len(own), len(correction)) > 1:
        own, correction = _compare_dampings(fit, held_out, prior, dampings, correction)
    return own[0], correction[0] if correction else None


def _compare_dampings(
    fit: Moments,
    held_out: Moments,
    prior: Tensor | None,
    dampings: Dampings,
    corrections: Sequence[float],
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the candidates for λ₁ and for λ₂ that predict best; empty without candidates.

    Solutions are compared less their prior, which has the same error for all of them.
    """
    probes = _probes(fit.cross)
    compared = corrections if len(corrections) > 1 else ()

    def targets(moments: Moments) -> tuple[Tensor, Tensor]:
        both = (unexplained(moments, prior), moments.correction)
        return both if probes is None else (both[0] @ probes, both[1] @ probes)

    own_targets, correction_targets = targets(held_out)
    # One factor serves both parts; without candidates the correction is not solved for.
    parts = targets(fit) if compared else targets(fit)[:1]
    matrix, fitted = dampings.matrix(fit.gram), torch.cat(parts, dim=1)

    @cache
    def solutions(damping: float) -> tuple[Tensor, ...]:
        """Return the solution of every part."""
        return matrix.factor(damping).solve(fitted).tensor_split(len(parts), dim=1)

    @cache
    def own_error(damping: float) -> float:
        return excess_error(held_out.gram, solutions(damping)[0], own_targets)

    best = _least(dampings.own, own_error)
    if not compared:
        return (best,), corrections

    @cache
    def error(damping: float) -> float:
        solution = solutions(best)[0] + solutions(damping)[1]
        return excess_error(held_out.gram, solution, own_targets + correction_targets)

    return (best,), (_least(compared, error),)


def _least(dampings: Sequence[float], error: Callable[[float], float]) -> float:
    """Return the damping of least error, reached from the middle one step by step.

    Between too little damping and too much the error has one minimum, and every damping that is
    not tried saves a factorisation.

    Args:
        dampings: candidates, at least one.
        error: held-out error of a damping; it is called again for the same dampings.
    """
    ordered = sorted(dampings)
    place = len(ordered) // 2
    while True:
        beside = [n for n in (place - 1, place, place + 1) if 0 <= n < len(ordered)]
        best = min(beside, key=lambda n: error(ordered[n]))
        if best == place:
            return ordered[place]
        place = best
