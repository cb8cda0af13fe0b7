"""Compensation: ridge regression of a module's output projection (docs/method.md, section 5).

After selection, the kept inner activations `z_S = Pᵀz` replace all inner activations, and the
output projection is refitted to them. The regression is split in two parts that differ in noise:
the module's own output is nearly exact and needs little damping; the correction towards the dense
hidden states is noisy and needs more. Held-out calibration sequences choose both dampings.

IntraSlice+ shrinks the first part to the projected weights `PᵀW` instead of zero: with nothing
removed the solution is then exactly the original weight, whatever the damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Norm
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.statistics import MomentAccumulator, Moments, prefix_scale, scaled


@dataclass(frozen=True, kw_only=True)
class Dampings:
    """Candidates for the relative dampings of both parts of the regression."""

    own: Sequence[float]
    """Candidates for λ₁, at least one."""
    correction: Sequence[float]
    """Candidates for λ₂; none disables the correction. Held-out error decides, λ₁ first."""
    per_dimension: bool = False
    """Damp each dimension in proportion to its own energy."""

    def factor(self, gram: Tensor, damping: float) -> linalg.Factor:
        """Return the damped factor of a Gram matrix, (n, n).

        Raises:
            NumericalError: if the matrix is not finite or the damping ladder ends.
        """
        return linalg.damped_cholesky(gram, damping, per_dimension=self.per_dimension)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted output projection."""

    weight: Tensor
    """(kept, hidden_size), float64."""
    damping_own: float
    """λ₁ used."""
    damping_correction: float | None
    """λ₂ used; None without correction."""
    relative_error: float
    """`E‖target - ẑ‖² / E‖target‖²` over the calibration tokens."""


def project(moments: Moments, basis: Tensor) -> Moments:
    """Return the moments of `Pᵀz` from those of `z`; `basis` is `P`, (width, kept)."""
    wide = basis.to(moments.gram)
    return Moments(
        gram=wide.mT @ moments.gram @ wide,
        cross=wide.mT @ moments.cross,
        correction=wide.mT @ moments.correction,
        energy=moments.energy,
        tokens=moments.tokens,
    )


def select(moments: Moments, kept: Tensor) -> Moments:
    """Return the moments of the coordinates `kept` of `z`, (kept,)."""
    return Moments(
        gram=moments.gram[kept][:, kept],
        cross=moments.cross[kept],
        correction=moments.correction[kept],
        energy=moments.energy,
        tokens=moments.tokens,
    )


def _excess(moments: Moments, weight: Tensor) -> float:
    """Return `E‖target - Wᵀz‖² - E‖target‖²`, which suffices to compare weights."""
    target = moments.cross + moments.correction
    return float((weight * (moments.gram @ weight - 2 * target)).sum())


def squared_error(moments: Moments, weight: Tensor) -> float:
    """Return `E‖target - Wᵀz‖²` of any weight, (width, hidden_size), from the moments."""
    return max(moments.energy + _excess(moments, weight), 0.0)


def _own_part(
    factor: linalg.Factor, moments: Moments, prior: Tensor | None, residual: Tensor | None = None
) -> Tensor:
    """Return the ridge solution for the module's own output, shrunk to `prior` or to zero.

    `residual` is the result of `_residual`, if the caller solves with several dampings.
    """
    solution = factor.solve(_residual(moments, prior) if residual is None else residual)
    return solution if prior is None else solution.add_(prior.to(moments.gram))


def _residual(moments: Moments, prior: Tensor | None) -> Tensor:
    """Return the cross moment that the prior does not explain, `R - H prior`."""
    if prior is None:
        return moments.cross
    return moments.cross - moments.gram @ prior.to(moments.gram)


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
    own, correction = dampings.own[0], dampings.correction[0] if has_correction else None
    if held_out is not None and len(dampings.own) > 1:
        own = _own_damping(fit, held_out, prior, dampings)
    if held_out is not None and has_correction and len(dampings.correction) > 1:
        correction = _correction_damping(fit, held_out, prior, own, dampings)
    return own, correction


def _own_damping(
    fit: Moments, held_out: Moments, prior: Tensor | None, dampings: Dampings
) -> float:
    """Return the candidate for λ₁ that predicts the module's own output best."""
    target = replace(held_out, correction=torch.zeros_like(held_out.correction))
    residual = _residual(fit, prior)

    def error(damping: float) -> float:
        factor = dampings.factor(fit.gram, damping)
        return _excess(target, _own_part(factor, fit, prior, residual))

    return min(dampings.own, key=error)


def _correction_damping(
    fit: Moments,
    held_out: Moments,
    prior: Tensor | None,
    own: float,
    dampings: Dampings,
) -> float:
    """Return the candidate for λ₂ that, added to the own part, predicts the target best."""
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
        held_out: moments over the other sequences; None if no damping has to be chosen.
        prior: projected original weight `PᵀW`, (kept, hidden_size); None to shrink to zero.
        dampings: candidates for both parts.

    Raises:
        NumericalError: if the damping ladder ends.
    """
    everything = fit if held_out is None else fit + held_out
    own, correction = choose_dampings(fit, held_out, prior, dampings)
    factor = dampings.factor(everything.gram, own)
    weight = _own_part(factor, everything, prior)
    if correction is not None:
        correction_factor = dampings.factor(everything.gram, correction)
        weight = weight + correction_factor.solve(everything.correction)
        correction = correction_factor.damping
    return Fit(
        weight=weight,
        damping_own=factor.damping,
        damping_correction=correction,
        relative_error=relative_error(everything, weight),
    )


def relative_error(moments: Moments, weight: Tensor) -> float:
    """Return `squared_error` divided by the target's energy, or 0 for a zero target."""
    return squared_error(moments, weight) / moments.energy if moments.energy > 0 else 0.0


# -- output norms (docs/method.md, section 9) --------------------------------------------------

NEGLIGIBLE = 1e-3
"""Threshold below which an output norm's weight is negligible, relative to its rms."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One batch of a module's activations, in the space of the regression."""

    inner: Tensor
    """Regressors, (…, width [+ 1]); a last entry of constant 1 stands for a bias."""
    own: Tensor
    """Output of the unpruned module, linear in its inner activations, (…, hidden_size)."""
    added: Tensor
    """Contribution of the unpruned module to the residual stream, (…, hidden_size)."""


@dataclass(frozen=True, kw_only=True)
class OutputSpace:
    """A dense output projection with the norm that follows it, if any (docs/method.md, section 9).

    With an output norm, the module's contribution is linear in the inner activations divided by
    the rms of the projection. Fits take place in that space and are converted back.
    """

    output: Linear
    norm: Norm | None
    settings: LayerSettings

    def rows(self) -> Tensor:
        """Return the projection by rows of inner dimensions, (width [+ 1], hidden_size), float64.

        A bias is the last row. With a norm, columns are multiplied by its weight. All are
        multiplied by the residual scale.
        """
        rows = self.output.weight.mT.to(WORKING_DTYPE)
        if self.output.bias is not None:
            rows = torch.cat((rows, self.output.bias.to(rows).unsqueeze(0)))
        scale, _ = self._column_scale()
        rows = rows * self.settings.residual_scale
        return rows if scale is None else rows * scale

    def unscaled(self, fitted: Tensor) -> Tensor:
        """Return a fitted solution, (kept [+ 1], hidden_size), as rows of the projection itself."""
        scale, _ = self._column_scale()
        fitted = fitted / self.settings.residual_scale
        return fitted if scale is None else fitted / scale

    def observe(self, dense_inner: Tensor, inner: Tensor) -> Observation:
        """Return the regression's view of one batch.

        Args:
            dense_inner: inner activations of the unpruned module, (…, width).
            inner: inner activations of the pruned module, (…, width).
        """
        projected = self.output(dense_inner)
        if self.output.bias is not None:
            inner = torch.cat((inner, torch.ones_like(inner[..., :1])), dim=-1)
        scale, _ = self._column_scale()
        if self.norm is None or scale is None:
            projected = decoder_layer.scaled(projected, self.settings)
            return Observation(inner=inner, own=projected, added=projected)
        wide = projected.float()
        rms = (wide.square().mean(-1, keepdim=True) + self.settings.norm_eps).sqrt()
        return Observation(
            inner=inner.float() / rms,
            own=decoder_layer.scaled(wide / rms * scale.float(), self.settings),
            added=decoder_layer.scaled(
                decoder_layer.apply_norm(projected, self.norm, self.settings), self.settings
            ),
        )

    def correction(self, target: Tensor, observation: Observation) -> Tensor:
        """Return target minus contribution, zero in columns of negligible norm weight.

        Args:
            target: wanted contribution to the residual stream, (…, hidden_size).
            observation: of the same batch.
        """
        difference = target - observation.added
        _, usable = self._column_scale()
        return difference if usable is None else difference * usable

    def _column_scale(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the norm's effective weight, floored, float64, and a mask of usable columns."""
        if self.norm is None:
            return None, None
        weight = self.norm.weight.to(WORKING_DTYPE)
        if self.settings.norm_type == "rms_plus_one":
            weight = weight + 1.0
        floor = NEGLIGIBLE * weight.square().mean().sqrt()
        usable = weight.abs() > floor
        return torch.where(usable, weight, floor.clamp_min(1e-30)), usable


def attention_space(weights: LayerWeights, settings: LayerSettings) -> OutputSpace:
    """Return the output space of a layer's attention."""
    return OutputSpace(
        output=weights.attention_output, norm=weights.attention_output_norm, settings=settings
    )


def mlp_space(weights: LayerWeights, settings: LayerSettings) -> OutputSpace:
    """Return the output space of a layer's MLP."""
    return OutputSpace(output=weights.mlp_output, norm=weights.mlp_output_norm, settings=settings)


class SplitAccumulator:
    """Accumulates a module's moments, those of held-out sequences apart from the others."""

    def __init__(
        self,
        space: OutputSpace,
        device: torch.device,
        *,
        own_is_linear: bool,
        has_held_out: bool,
        prefix_length: int = 0,
    ) -> None:
        self._space = space
        self._prefix_length = prefix_length

        def make() -> MomentAccumulator:
            return MomentAccumulator(
                width=space.output.weight.shape[1] + (space.output.bias is not None),
                hidden_size=space.output.weight.shape[0],
                device=device,
                own_is_linear=own_is_linear,
            )

        self._fit = make()
        self._held_out = make() if has_held_out else None

    def add(
        self,
        observation: Observation,
        target: Tensor | None,
        stream: Tensor,
        *,
        is_held_out: bool,
    ) -> None:
        """Add one batch, flattened to tokens.

        Args:
            observation: (batch, sequence, …), from the output space.
            target: wanted contribution to the residual stream, (batch, sequence, hidden_size);
                None if it is the module's own.
            stream: hidden states after the module, (batch, sequence, hidden_size), by which the
                positions of the prefix are scaled.
            is_held_out: whether the batch belongs to the held-out sequences.

        Raises:
            NumericalError: if an activation is not finite.
        """
        correction = None if target is None else self._space.correction(target, observation)
        sums = self._held_out if self._held_out is not None and is_held_out else self._fit
        scale = prefix_scale(stream, self._prefix_length)
        sums.add(
            scaled(observation.inner, scale).flatten(0, 1),
            scaled(observation.own, scale).flatten(0, 1),
            None if correction is None else scaled(correction, scale).flatten(0, 1),
        )

    def moments(self) -> tuple[Moments, Moments | None]:
        """Return the moments for the fit and, if there are any, those of held-out sequences.

        Raises:
            NumericalError: if no tokens were added.
        """
        rows, held_out = self._space.rows(), self._held_out
        return self._fit.moments(rows), None if held_out is None else held_out.moments(rows)
