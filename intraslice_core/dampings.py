"""Choice of dampings on sequences or sources left out (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.ranks import ALONE, Ranks
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
    by_source: bool = False
    """Both parts of the calibration are of different sources, and either may be left out."""

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
    fit: Moments,
    held_out: Moments | None,
    prior: Tensor | None,
    dampings: Dampings,
    ranks: Ranks = ALONE,
) -> tuple[float, float | None]:
    """Return the dampings whose solutions have the least error on moments they were not fitted to.

    λ₁ is chosen by the error of the module's own output, then λ₂ by the error of the full target.
    Without held-out moments the first candidates are taken. λ₂ is None without correction.

    Args:
        fit: moments to fit on.
        held_out: moments to score by; with `by_source` the larger of both is fitted on, or each in
            turn if they are of equally many tokens.
        prior: weights that the solution shrinks to, (width, hidden_size); None for zero.
        dampings: candidates for both parts.
        ranks: those that have the same moments; they divide the candidates among them.

    Raises:
        NumericalError: if the damping ladder ends.
    """
    has_correction = bool(fit.correction.any()) and len(dampings.correction) > 0
    own, correction = dampings.own, dampings.correction if has_correction else ()
    if held_out is not None and max(len(own), len(correction)) > 1:
        folds = _folds(fit, held_out, prior, dampings, corrects=len(correction) > 1)
        own, correction = _compare_dampings(folds, own, correction, ranks)
    return own[0], correction[0] if correction else None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Moments of a part of the calibration, with the targets by which dampings are compared."""

    gram: Tensor
    """`H`, (width, width)."""
    own: Tensor
    """Probes of the cross moment with the module's own output that the prior does not explain."""
    correction: Tensor
    """Probes of the cross moment with the correction, (width, PROBES) or (width, hidden_size)."""
    energy: float
    """`E‖target‖²`; 1 for a zero target."""
    tokens: int

    @classmethod
    def of(cls, moments: Moments, prior: Tensor | None) -> _Part:
        """Return the part of some moments."""
        probes, own = _probes(moments.cross), unexplained(moments, prior)
        return cls(
            gram=moments.gram,
            own=own if probes is None else own @ probes,
            correction=moments.correction if probes is None else moments.correction @ probes,
            energy=moments.energy if moments.energy > 0 else 1.0,
            tokens=moments.tokens,
        )


class _Fold:
    """Solutions on one part of the calibration, and their error on the other.

    Solutions are compared less their prior, which has the same error for all of them. Errors are
    divided by the energy of the target that they are measured on, so that parts of unequal energy
    count alike.

    Args:
        fit: part to fit on.
        scored: part to measure the error on.
        dampings: candidates for both parts of the regression.
        corrects: whether dampings of the correction are compared.
        scale: factor on all dampings.
    """

    def __init__(
        self,
        fit: _Part,
        scored: _Part,
        dampings: Dampings,
        *,
        corrects: bool,
        scale: float = 1.0,
    ) -> None:
        self._scored, self._scale = scored, scale
        # One factor serves both targets; without candidates the correction is not solved for.
        targets = (fit.own, fit.correction) if corrects else (fit.own,)
        self._targets, self._fitted = len(targets), torch.cat(targets, dim=1)
        self._matrix = dampings.matrix(fit.gram)
        self._solutions: dict[float, tuple[Tensor, ...]] = {}

    def _solve(self, damping: float) -> tuple[Tensor, ...]:
        """Return the solution for every target."""
        if damping not in self._solutions:
            solution = self._matrix.factor(self._scale * damping).solve(self._fitted)
            self._solutions[damping] = solution.tensor_split(self._targets, dim=1)
        return self._solutions[damping]

    def own_error(self, own: float) -> float:
        """Return the relative error of the module's own output, less that of the prior."""
        scored = self._scored
        return excess_error(scored.gram, self._solve(own)[0], scored.own) / scored.energy

    def error(self, own: float, correction: float) -> float:
        """Return the relative error of the full target, less that of the prior."""
        scored = self._scored
        solution = self._solve(own)[0] + self._solve(correction)[1]
        return excess_error(scored.gram, solution, scored.own + scored.correction) / scored.energy


def _folds(
    fit: Moments, held_out: Moments, prior: Tensor | None, dampings: Dampings, *, corrects: bool
) -> list[_Fold]:
    """Return the folds by which dampings are compared.

    A source is left out if the other has at least half of the tokens: what suits the fit on few
    tokens is too much for the fit on all. The rest of that difference is made up for by the tokens
    that the fold lacks, because noise and the effects of single sources average out in proportion
    (docs/method.md, section 5).
    """
    first, second = _Part.of(fit, prior), _Part.of(held_out, prior)
    if not dampings.by_source:
        return [_Fold(first, second, dampings, corrects=corrects)]
    total = first.tokens + second.tokens
    return [
        _Fold(part, other, dampings, corrects=corrects, scale=total / part.tokens)
        for part, other in ((first, second), (second, first))
        if 2 * part.tokens >= total
    ]


def _compare_dampings(
    folds: Sequence[_Fold], own: Sequence[float], corrections: Sequence[float], ranks: Ranks
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the candidates for λ₁ and for λ₂ of least mean error over the folds."""
    best = _least(own, _errors([fold.own_error for fold in folds], own, ranks))
    if len(corrections) < 2:
        return (best,), corrections

    by_fold = [partial(fold.error, best) for fold in folds]
    return (best,), (_least(corrections, _errors(by_fold, corrections, ranks)),)


def _errors(
    by_fold: Sequence[Callable[[float], float]], candidates: Sequence[float], ranks: Ranks
) -> Callable[[float], float]:
    """Return the error of a damping over all folds.

    A single process computes it when it is needed. Several ranks compute those of all candidates at
    once, because a factorisation more costs them no time.

    Args:
        by_fold: error of a damping in each fold.
        candidates: dampings.
        ranks: those that divide the folds and candidates among them.
    """
    if ranks.is_alone:
        return cache(lambda damping: sum(error(damping) for error in by_fold))
    tasks = [partial(error, damping) for damping in candidates for error in by_fold]
    errors = ranks.evaluated(tasks)
    folds = len(by_fold)
    sums = {
        damping: sum(errors[number * folds : (number + 1) * folds])
        for number, damping in enumerate(candidates)
    }
    return sums.__getitem__


def _least(dampings: Sequence[float], error: Callable[[float], float]) -> float:
    """Return the damping of least error, reached from the middle one step by step.

    Between too little damping and too much the error has one minimum, and every damping that is
    not tried saves a factorisation.

    Args:
        dampings: candidates, at least one.
        error: validation error of a damping; it is called again for the same dampings.
    """
    ordered = sorted(dampings)
    place = len(ordered) // 2
    while True:
        beside = [n for n in (place - 1, place, place + 1) if 0 <= n < len(ordered)]
        best = min(beside, key=lambda n: error(ordered[n]))
        if best == place:
            return ordered[place]
        place = best
