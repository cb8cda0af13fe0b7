"""Compensation: ridge regression of a module's output projection (docs/method.md, section 5).

After selection, the kept inner activations `z_S = Pᵀz` replace all inner activations, and the
output projection is refitted to them. The regression is split in two parts that differ in noise:
the module's own output is nearly exact and needs little damping; the correction towards the dense
hidden states is noisy and needs more. Calibration sequences left out of a fit choose both dampings.

IntraSlice+ shrinks the first part to the projected weights `PᵀW` instead of zero: with nothing
removed the solution is then exactly the original weight, whatever the damping.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.dampings import Dampings, choose_dampings, excess_error, unexplained
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Norm
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.statistics import MomentAccumulator, Moments, prefix_scale, scaled


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
        gram=linalg.product(linalg.product(wide.mT, moments.gram), wide),
        cross=wide.mT @ moments.cross,
        correction=wide.mT @ moments.correction,
        energy=moments.energy,
        tokens=moments.tokens,
    )


def select(moments: Moments, kept: Tensor) -> Moments:
    """Return the moments of the coordinates `kept` of `z`, (kept,)."""
    return Moments(
        gram=linalg.submatrix(moments.gram, kept),
        cross=moments.cross[kept],
        correction=moments.correction[kept],
        energy=moments.energy,
        tokens=moments.tokens,
    )


def squared_error(moments: Moments, weight: Tensor) -> float:
    """Return `E‖target - Wᵀz‖²` of any weight, (width, hidden_size), from the moments."""
    target = moments.cross + moments.correction
    return max(moments.energy + excess_error(moments.gram, weight, target), 0.0)


def fit_output(
    fit: Moments,
    held_out: Moments | None,
    prior: Tensor | None,
    dampings: Dampings,
    *,
    in_place: bool = False,
    ranks: Ranks = ALONE,
    owner: int = MAIN,
) -> Fit:
    """Fit the output projection of a pruned module.

    The ranks compare dampings together; then one of them fits.

    Args:
        fit: moments of the kept activations over most calibration sequences.
        held_out: moments over the other sequences; None if no damping has to be chosen.
        prior: projected original weight `PᵀW`, (kept, hidden_size); None to shrink to zero.
        dampings: candidates for both parts.
        in_place: overwrite `fit` by the sum of both, which saves a copy of the Gram matrix.
        ranks: those that have the same moments.
        owner: rank that fits.

    Raises:
        NumericalError: if the damping ladder ends.
    """
    chosen = choose_dampings(fit, held_out, prior, dampings, ranks)

    def fitted() -> Fit:
        everything = fit if held_out is None else fit.plus(held_out, in_place=in_place)
        return _fit_with(chosen, everything, prior, dampings)

    return ranks.computed(owner, fitted)


def _fit_with(
    chosen: tuple[float, float | None],
    everything: Moments,
    prior: Tensor | None,
    dampings: Dampings,
) -> Fit:
    """Fit with chosen dampings for both parts; other arguments are those of `fit_output`."""
    own, correction = chosen
    matrix = dampings.matrix(everything.gram)
    factor = matrix.factor(own)
    weight = factor.solve(unexplained(everything, prior))
    used, target = factor.damping, everything.cross
    # `H W`, which the error needs, follows from the equations that the solution satisfies.
    damped = weight * (used * matrix.scale).unsqueeze(-1)
    if prior is not None:
        weight += prior.to(weight)
    if correction is not None:
        if correction != own:
            del factor  # there may be memory for one
            factor = matrix.factor(correction)
        part, target = factor.solve(everything.correction), target + everything.correction
        weight += part
        damped += part.mul_((factor.damping * matrix.scale).unsqueeze(-1))
        correction = factor.damping
    product = target.sub(damped)  # `H W`
    product.sub_(everything.cross, alpha=2).sub_(everything.correction, alpha=2)
    error = max(everything.energy + float(weight.mul(product).sum()), 0.0)
    return Fit(
        weight=weight,
        damping_own=used,
        damping_correction=correction,
        relative_error=error / everything.energy if everything.energy > 0 else 0.0,
    )


def relative_error(moments: Moments, weight: Tensor) -> float:
    """Return `squared_error` divided by the target's energy, or 0 for a zero target."""
    return squared_error(moments, weight) / moments.energy if moments.energy > 0 else 0.0


# -- output norms (docs/method.md, section 9) --------------------------------------------------

NEGLIGIBLE = 1e-3
"""Threshold below which an output norm's weight is negligible, relative to its rms."""


@dataclass(frozen=True, kw_only=True)
class Regressors:
    """One batch of a module's inner activations, in the space of the regression."""

    inner: Tensor
    """Regressors, (…, width [+ 1]); a last entry of constant 1 stands for a bias."""


@dataclass(frozen=True, kw_only=True)
class Observation(Regressors):
    """One batch of a module's activations, in the space of the regression."""

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

    def regressors(self, inner: Tensor) -> Regressors:
        """Return one batch of regressors without norm, from inner activations, (…, width)."""
        if self.output.bias is not None:
            inner = torch.cat((inner, torch.ones_like(inner[..., :1])), dim=-1)
        return Regressors(inner=inner)

    def observe(self, dense_inner: Tensor, inner: Tensor) -> Observation:
        """Return the regression's view of one batch.

        Args:
            dense_inner: inner activations of the unpruned module, (…, width).
            inner: inner activations of the pruned module, (…, width).
        """
        inner = self.regressors(inner).inner
        projected = self.output(dense_inner)
        scale, _ = self._column_scale()
        if self.norm is None or scale is None:
            projected = decoder_layer.scaled(projected, self.settings)
            return Observation(inner=inner, own=projected, added=projected)
        wide, rms = projected.float(), self._rms(projected)
        return Observation(
            inner=inner.float() / rms,
            own=decoder_layer.scaled(wide / rms * scale.float(), self.settings),
            added=decoder_layer.scaled(
                decoder_layer.apply_norm(projected, self.norm, self.settings), self.settings
            ),
        )

    def contribution_scale(self, inner: Tensor) -> Tensor | None:
        """Return the factor of every position's inner activations in the space of the regression.

        Args:
            inner: inner activations of the unpruned module, (…, width).

        Returns:
            (…,), float32; None without norm.
        """
        if self.norm is None:
            return None
        return self._rms(self.output(inner)).squeeze(-1).reciprocal()

    def _rms(self, projected: Tensor) -> Tensor:
        """Return the root mean square that the norm divides the projection by, (…, 1), float32."""
        energy = projected.float().square().mean(-1, keepdim=True)
        return (energy + self.settings.norm_eps).sqrt()

    def correction(self, target: Tensor, observation: Observation) -> Tensor:
        """Return target minus contribution, zero in columns of negligible norm weight.

        Args:
            target: wanted contribution to the residual stream, (…, hidden_size).
            observation: of the same batch.
        """
        difference = target - observation.added
        _, usable = self._column_scale()
        return difference if usable is None else difference * usable

    def reachable(self, target: Tensor, observation: Regressors) -> Tensor:
        """Return the target, in columns of negligible norm weight the module's own output.

        Arguments are those of `correction`.
        """
        _, usable = self._column_scale()
        if usable is None or not isinstance(observation, Observation):
            return target
        return torch.where(usable, target.to(observation.own), observation.own)

    def without_unusable(self, moments: Moments) -> Moments:
        """Return moments whose correction is zero in columns of negligible norm weight."""
        _, usable = self._column_scale()
        if usable is not None:
            moments.correction.mul_(usable)
        return moments

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
    """Accumulates a module's moments, those of the sequences left out apart from the others.

    Args:
        space: output space of the dense module.
        device: compute device.
        own_is_linear: whether the module's own output is a projection of the inner activation.
        has_held_out: whether there are held-out sequences.
        prefix_length: positions of the prefix at the beginning of every sequence.
        width: width of the inner activation; None for that of the dense module.
        kept: leading entries of the inner activation that the module keeps, where they are known;
            None for all. `own_is_linear` must be true then.
        ranks: those whose tokens are averaged over.
    """

    def __init__(  # noqa: PLR0913 (everything that its two accumulators need)
        self,
        space: OutputSpace,
        device: torch.device,
        *,
        own_is_linear: bool,
        has_held_out: bool,
        prefix_length: int = 0,
        width: int | None = None,
        kept: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._space = space
        self._own_is_linear = own_is_linear
        self._prefix_length = prefix_length
        self._width = width or space.output.weight.shape[1]
        self._kept = kept
        constants = int(space.output.bias is not None)

        def make() -> MomentAccumulator:
            return MomentAccumulator(
                width=self._width + constants,
                hidden_size=space.output.weight.shape[0],
                device=device,
                own_is_linear=own_is_linear,
                kept=None if kept is None else kept + constants,
                ranks=ranks,
            )

        self._fit = make()
        self._held_out = make() if has_held_out else None

    def needs_own(self, *, has_target: bool) -> bool:
        """Report whether `add` needs an `Observation`, with the unpruned module's own output."""
        if not self._own_is_linear or self._space.norm is not None:
            return True
        return not has_target and (self._prefix_length > 0 or self._kept is not None)

    def add(
        self,
        observation: Regressors,
        target: Tensor | None,
        stream: Tensor | None,
        *,
        is_held_out: bool,
    ) -> None:
        """Add one batch, flattened to tokens.

        Args:
            observation: (batch, sequence, …), from the output space; see `needs_own`.
            target: wanted contribution to the residual stream, (batch, sequence, hidden_size);
                None if it is the module's own.
            stream: hidden states after the module, (batch, sequence, hidden_size), by which the
                positions of the prefix are scaled; None without prefix.
            is_held_out: whether the batch belongs to the held-out sequences.

        Raises:
            NumericalError: if an activation is not finite.
        """
        sums = self._held_out if self._held_out is not None and is_held_out else self._fit
        scale = None if stream is None else prefix_scale(stream, self._prefix_length)

        def flat(activations: Tensor) -> Tensor:
            return scaled(activations, scale).flatten(0, 1)

        inner = self._arranged(flat(observation.inner))
        observed = isinstance(observation, Observation)
        if self._own_is_linear and (target is not None or not observed):
            reached = None if target is None else self._space.reachable(target, observation)
            sums.add_linear(inner, None if reached is None else flat(reached))
            return
        assert isinstance(observation, Observation)
        correction = None if target is None else self._space.correction(target, observation)
        sums.add(inner, flat(observation.own), None if correction is None else flat(correction))

    def _arranged(self, entries: Tensor) -> Tensor:
        """Move the constant that stands for a bias to the kept entries, in the last dimension."""
        if self._space.output.bias is None or self._kept in (None, self._width):
            return entries
        parts = (entries[..., : self._kept], entries[..., -1:], entries[..., self._kept : -1])
        return torch.cat(parts, dim=-1)

    def moments(self) -> tuple[Moments, Moments | None]:
        """Return the moments for the fit and, if there are any, those of held-out sequences.

        Raises:
            NumericalError: if no tokens were added.
        """
        rows = self._arranged(self._space.rows().mT).mT
        fit = self._space.without_unusable(self._fit.moments(rows))
        if self._held_out is None:
            return fit, None
        return fit, self._space.without_unusable(self._held_out.moments(rows))
