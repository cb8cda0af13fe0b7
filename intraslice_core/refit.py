"""Refit of a module's output projection with a method's dampings (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from intraslice_core import compensation
from intraslice_core.compensation import OutputSpace
from intraslice_core.dampings import Dampings
from intraslice_core.errors import NumericalError
from intraslice_core.methods import CompressionMethod
from intraslice_core.plan import Module
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.selection.spectra import Spectrum
from intraslice_core.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class ModuleOutcome:
    """Measurements of one compressed module."""

    module: Module
    relative_error: float | None = None
    """Error of the refit relative to its target's energy; None without refit."""
    explained_energy: float | None = None
    """Share of the value spectrum that the basis keeps, None for the MLP; or of the energy of the
    residual stream after the module, where that is sliced."""
    damping: dict[str, float] = field(default_factory=dict)
    """Dampings used, by the regression's part (`own`, `correction`)."""
    spectra: tuple[Spectrum, ...] = ()
    """Spectra of the selections, one per dimension that was cut."""


@contextmanager
def errors_located_at(layer: int, module: Module) -> Iterator[None]:
    """Add layer and module to a `NumericalError` raised inside the context."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(
            error.message,
            layer=layer if error.layer is None else error.layer,
            module=error.module or module,
            hint=error.hint,
        ) from error


class Refit:
    """Fits of one module of one layer: one before the selection, where needed, and one after it."""

    def __init__(
        self,
        method: CompressionMethod,
        *,
        leaves_out_sources: bool = False,
        ranks: Ranks = ALONE,
        owner: int = MAIN,
    ) -> None:
        """Start the fits of a module.

        Args:
            method: options of the method.
            leaves_out_sources: whether the held-out moments are those of other sources.
            ranks: those that compress the module together.
            owner: rank that selects and fits.
        """
        self._method = method
        self._ranks, self._owner = ranks, owner
        self._leaves_out_sources = leaves_out_sources
        self._correction_candidates = method.damping_correction

    def dense_output(self, fit: Moments, held_out: Moments | None, space: OutputSpace) -> Tensor:
        """Fit the dense output projection to the target, (inner [+ 1], hidden_size), float64.

        The owner calls this, for its selection. It also chooses the correction's damping for the
        module: the refit after selection has the same tokens and the same target, so it reuses
        that damping.
        """
        method = self._method
        prior = space.rows() if method.shrink_to_weights else None
        dampings = Dampings(
            own=(method.choice_damping,),
            correction=method.damping_correction,
            per_dimension=method.damping_per_dimension,
            by_source=self._leaves_out_sources,
        )
        fitted = compensation.fit_output(fit, held_out, prior, dampings)
        if fitted.damping_correction is not None:
            self._correction_candidates = (fitted.damping_correction,)
        return fitted.weight

    def module(
        self, module: Module, fit: Moments, held_out: Moments | None, prior: Tensor, intact: bool
    ) -> tuple[ModuleOutcome, Tensor]:
        """Refit the output projection of a pruned module, (kept [+ 1], hidden_size), float64.

        Args:
            module: for the outcome.
            fit: moments of the kept inner activations; overwritten.
            held_out: the same of held-out sequences or of other sources, or None.
            prior: projected dense weight `PᵀW`.
            intact: whether nothing is removed; the weight then stays unless the target is dense.
        """
        method = self._method
        if intact and not method.dense_target:
            everything = fit if held_out is None else fit + held_out
            error = compensation.relative_error(everything, prior)
            return ModuleOutcome(module=module, relative_error=error), prior
        candidates = self._ranks.computed(self._owner, lambda: self._correction_candidates)
        dampings = Dampings(
            own=method.damping_own,
            correction=candidates,
            per_dimension=method.damping_per_dimension,
            by_source=self._leaves_out_sources,
        )
        prior_or_zero = prior if method.shrink_to_weights else None
        fitted = compensation.fit_output(
            fit,
            held_out,
            prior_or_zero,
            dampings,
            in_place=True,
            ranks=self._ranks,
            owner=self._owner,
        )
        damping = {"own": fitted.damping_own}
        if fitted.damping_correction is not None:
            damping["correction"] = fitted.damping_correction
        outcome = ModuleOutcome(
            module=module, relative_error=fitted.relative_error, damping=damping
        )
        return outcome, fitted.weight
