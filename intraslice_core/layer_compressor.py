"""One layer's order of work (end of section 5 of docs/method.md).

q/k choice → attention again with pruned q/k → V/O basis → least squares into W_o → both streams
past the attention → MLP choice → least squares into W_d → both streams past the layer. The
compressed stream is advanced with the sliced weights as they will be saved, so later layers see
what the saved model computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intraslice_core import compensation, decoder_layer, linalg, slicing
from intraslice_core.compensation import Observation, OutputSpace
from intraslice_core.decoder_layer import LayerWeights, Linear
from intraslice_core.errors import NumericalError
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass
from intraslice_core.plan import LayerPlan
from intraslice_core.selection import neurons, rotary_pairs, spectra, value_basis
from intraslice_core.selection.spectra import Spectrum
from intraslice_core.sensitivity.layer_sensitivity import KeptHeads, with_pairs
from intraslice_core.statistics import (
    HeadEnergies,
    HeadEnergyAccumulator,
    MomentAccumulator,
    Moments,
    RotaryAccumulator,
    RotaryStatistics,
)


@dataclass(frozen=True, kw_only=True)
class ModuleOutcome:
    """What happened to one module."""

    module: str
    relative_error: float | None = None
    explained_energy: float | None = None
    damping: dict[str, float] = field(default_factory=dict)
    spectra: tuple[Spectrum, ...] = ()
    """What was chosen by, a dimension each; of dimensions that nothing was asked of, none."""


@dataclass(frozen=True, kw_only=True)
class LayerOutcome:
    """A sliced layer."""

    weights: LayerWeights
    kept_pairs: Tensor
    """(num_key_value_heads, pairs), ascending."""
    attention: ModuleOutcome
    mlp: ModuleOutcome
    seconds: float


@contextmanager
def _locating(layer: int, module: str) -> Iterator[None]:
    """Name the layer and the module of numerical trouble that passes through."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(
            error.message, layer=layer, module=error.module or module, hint=error.hint
        ) from error


class LayerCompressor:
    """Compresses one layer and moves the streams past it."""

    def __init__(
        self, weights: LayerWeights, plan: LayerPlan, states: HiddenStates, context: LayerContext
    ) -> None:
        self._dense = weights
        self._plan = plan
        self._context = context
        self._pass = LayerPass(weights, states, context)
        self._spectra: list[Spectrum] = []
        self._attention_space = OutputSpace(
            output=weights.attention_output,
            norm=weights.attention_output_norm,
            settings=context.settings,
        )
        self._mlp_space = OutputSpace(
            output=weights.mlp_output, norm=weights.mlp_output_norm, settings=context.settings
        )
        self._correction_candidates = context.method.damping_correction

    def run(self) -> LayerOutcome:
        """Do the layer's work in its order.

        Raises:
            NumericalError: naming the layer and the module.
        """
        started = time.perf_counter()
        if not self._context.method.compensate:
            return self._cut_without_data()
        with _locating(self._context.layer, "attention"):
            if self._plan.num_attention_heads == 0:
                pairs, weights, attention = self._remove_attention()
            else:
                pairs, pruned = self._prune_pairs()
                heads = self._chosen_heads()
                weights, attention = self._compress_attention(pruned, heads)
                pairs = pairs if heads is None else pairs[heads.groups]
                attention = replace(attention, spectra=self._taken_spectra())
        self._correction_candidates = self._context.method.damping_correction
        with _locating(self._context.layer, "mlp"):
            if self._plan.intermediate_size == 0:
                weights, mlp = self._remove_mlp(weights)
            else:
                weights, mlp = self._compress_mlp(weights)
                mlp = replace(mlp, spectra=self._taken_spectra())
            self._pass.advance_mlp(weights)
        return LayerOutcome(
            weights=weights,
            kept_pairs=pairs,
            attention=attention,
            mlp=mlp,
            seconds=time.perf_counter() - started,
        )

    def replay(self, weights: LayerWeights) -> None:
        """Move both hidden states past the layer, which an interrupted run has compressed.

        Args:
            weights: the sliced layer as that run saved it.
        """
        self._pass.replay(weights)

    def _taken_spectra(self) -> tuple[Spectrum, ...]:
        """Those of the module that is done."""
        taken, self._spectra = tuple(self._spectra), []
        return taken

    def _cut_without_data(self) -> LayerOutcome:
        """The naive baseline: choose by weights alone, refit nothing, leave the streams alone."""
        started = time.perf_counter()
        self._context.before_batch(0.0)
        pairs, weights = self._cut_attention(self._dense)
        weights = self._cut_mlp(weights)
        return LayerOutcome(
            weights=self._as_stored(weights),
            kept_pairs=pairs,
            attention=ModuleOutcome(module="attention"),
            mlp=ModuleOutcome(module="mlp"),
            seconds=time.perf_counter() - started,
        )

    def _cut_attention(self, weights: LayerWeights) -> tuple[Tensor, LayerWeights]:
        settings, plan = self._context.settings, self._plan
        if plan.num_attention_heads == 0:
            return _no_pairs(self._context.device), slicing.remove_attention(weights)
        groups, output = settings.num_key_value_heads, weights.attention_output
        score = rotary_pairs.magnitude_score(weights.query.weight, weights.key.weight, groups)
        pairs = rotary_pairs.keep_best_pairs(score, plan.qk_pairs)
        basis = value_basis.magnitude_basis(
            weights.value.weight, output.weight.mT, groups, plan.v_head_dim
        )
        heads = slicing.value_projection(basis, settings.num_attention_heads)
        energies = slicing.weight_energies(weights)
        weights = slicing.slice_rotary_pairs(weights, pairs, settings, energies)
        weights = slicing.project_values(weights, basis)
        return pairs, replace(weights, attention_output=slicing.project_inputs(output, heads))

    def _cut_mlp(self, weights: LayerWeights) -> LayerWeights:
        keep, output = self._plan.intermediate_size, weights.mlp_output
        if keep == 0:
            return slicing.remove_mlp(weights)
        gate = None if weights.gate is None else weights.gate.weight
        score = neurons.magnitude_score(gate, weights.up.weight, output.weight.mT)
        kept = neurons.keep_best_neurons(score, keep).kept
        weights = slicing.slice_neurons(weights, kept)
        return replace(weights, mlp_output=slicing.select_inputs(output, kept))

    def _accumulators(
        self, output: Linear, own_is_linear: bool
    ) -> tuple[MomentAccumulator, MomentAccumulator | None]:
        """Sums for the fit and, where damping is chosen, for the held-out sequences."""
        width = output.weight.shape[1] + (output.bias is not None)

        def make() -> MomentAccumulator:
            return MomentAccumulator(
                width=width,
                hidden_size=output.weight.shape[0],
                device=self._context.device,
                own_is_linear=own_is_linear,
            )

        has_held_out = self._pass.has_held_out
        return make(), make() if has_held_out else None

    # -- removed modules -------------------------------------------------------------------

    def _remove_attention(self) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
        """A layer without attention; the dense stream passes its own all the same."""
        self._pass.skip()
        known = self._pass.restore_dense("attention")
        for rows in self._pass.batches():
            self._pass.advance_dense(rows, known, self._pass.after_attention, "attention")
        self._pass.keep_dense("attention", known)
        weights = self._as_stored(slicing.remove_attention(self._dense))
        return _no_pairs(self._context.device), weights, ModuleOutcome(module="attention")

    def _remove_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """A layer without MLP; both streams pass what they pass in `_mlp_moments`."""
        known = self._pass.restore_dense("mlp")
        for rows in self._pass.batches():
            if not self._context.settings.parallel_block:
                hidden = self._pass.compressed(rows)
                between = self._pass.after_attention(hidden, weights)
                self._pass.store_compressed(rows, between)
            self._pass.advance_dense(rows, known, self._pass.after_mlp)
        self._pass.keep_dense("mlp", known)
        weights = self._as_stored(slicing.remove_mlp(weights))
        return weights, ModuleOutcome(module="mlp")

    # -- attention -------------------------------------------------------------------------

    def _prune_pairs(self) -> tuple[Tensor, LayerWeights]:
        """The rotary pairs that stay, (num_key_value_heads, pairs), and the block with them."""
        settings, keep = self._context.settings, self._plan.qk_pairs
        total = settings.head_dim // 2
        if keep == total:
            every = torch.arange(total, device=self._context.device)
            self._pass.skip()
            return every.expand(settings.num_key_value_heads, total), self._dense
        known = self._context.sensitivity
        if known is not None:
            self._pass.skip()
            choice = known.pairs(keep)
            self._spectra.append(spectra.by_losses("rotary pairs", known.pair_losses, keep))
            return choice.kept, with_pairs(self._dense, choice, settings, known.energies)
        statistics, energies = self._pair_statistics()
        if self._context.method.pair_score == "product":
            score = rotary_pairs.paper_score(statistics)
        else:
            score = rotary_pairs.centered_score(statistics)
        self._spectra.append(spectra.by_scores("rotary pairs", "score", score, keep))
        pairs = rotary_pairs.keep_best_pairs(score, keep)
        return pairs, slicing.slice_rotary_pairs(self._dense, pairs, settings, energies)

    def _pair_statistics(self) -> tuple[RotaryStatistics, HeadEnergies]:
        """Of queries and keys as they meet, and as they are before norm and RoPE."""
        context, settings = self._context, self._context.settings
        shape = {
            "num_key_value_heads": settings.num_key_value_heads,
            "pairs": settings.head_dim // 2,
        }
        meeting = RotaryAccumulator(**shape, device=context.device)
        projected = HeadEnergyAccumulator(**shape, device=context.device)
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            normed = decoder_layer.attention_inputs(hidden, self._dense, settings)
            heads = decoder_layer.queries_and_keys(normed, self._dense)
            projected.add(*heads)
            meeting.add(
                *decoder_layer.normed_and_rotated(*heads, self._dense, settings, context.rotary)
            )
        return meeting.statistics(), projected.energies()

    def _chosen_heads(self) -> KeptHeads | None:
        """The heads that stay; None says all.

        Each goes by what was learnt of all, so they may be sliced behind what is chosen for each
        KV group: the moments are of all heads then, and the refit reads those that stay.
        """
        plan, settings = self._plan, self._context.settings
        known = self._context.sensitivity
        if known is None or plan.num_attention_heads == settings.num_attention_heads:
            return None
        groups = plan.num_key_value_heads
        return known.heads(groups, plan.num_attention_heads // groups)

    def _compress_attention(
        self, pruned: LayerWeights, heads: KeptHeads | None
    ) -> tuple[LayerWeights, ModuleOutcome]:
        """Choose the value basis and refit the output projection, q and k being pruned."""
        context = self._context
        fit, held_out = self._attention_moments(pruned)
        basis, explained = self._choose_value_basis(fit, held_out)
        intact = basis is None and heads is None and pruned is self._dense
        if basis is not None:
            pruned = slicing.project_values(pruned, basis)
            projection = slicing.value_projection(basis, context.settings.num_attention_heads)
        else:
            projection = torch.eye(
                self._dense.attention_output.weight.shape[1],
                dtype=linalg.WORKING_DTYPE,
                device=context.device,
            )
        if heads is not None:
            group = context.settings.num_attention_heads // context.settings.num_key_value_heads
            projection = projection[:, heads.columns(group, self._plan.v_head_dim)]
            pruned = slicing.slice_heads(pruned, heads.groups, heads.queries)
        projection = slicing.with_bias_row(projection, self._dense.attention_output)
        prior = projection.mT @ self._attention_space.rows()
        outcome, output = self._refit(
            "attention",
            compensation.project(fit, projection),
            held_out and compensation.project(held_out, projection),
            prior,
            intact,
        )
        weights = replace(
            pruned,
            attention_output=slicing.output_projection(
                self._attention_space.solved(output), self._dense.attention_output
            ),
        )
        return self._as_stored(weights), replace(outcome, explained_energy=explained)

    def _attention_moments(self, pruned: LayerWeights) -> tuple[Moments, Moments | None]:
        """Moments of the pruned attention's `o`; moves the dense stream past its attention."""
        settings, rotary = self._context.settings, self._context.rotary
        space = self._attention_space
        fit, held_out = self._accumulators(space.output, own_is_linear=pruned is self._dense)
        known = self._pass.restore_dense("attention")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            normed = decoder_layer.attention_inputs(hidden, self._dense, settings)
            inner = full = decoder_layer.attention_inner(normed, self._dense, settings, rotary)
            if pruned is not self._dense:
                inner = decoder_layer.attention_inner(normed, pruned, settings, rotary)
            seen = space.observe(full, inner)
            star = self._pass.advance_dense(rows, known, self._pass.after_attention, "attention")
            correction = None if star is None else space.correction(star - hidden, seen)
            sums = held_out if held_out is not None and self._pass.is_held_out(rows) else fit
            _add(sums, seen, correction)
        self._pass.keep_dense("attention", known)
        return _moments(fit, held_out, space)

    def _choose_value_basis(
        self, fit: Moments, held_out: Moments | None
    ) -> tuple[Tensor | None, float | None]:
        """The basis of each KV group and the share of its spectrum that it keeps."""
        settings, method = self._context.settings, self._context.method
        keep, heads = self._plan.v_head_dim, settings.num_key_value_heads
        if keep == settings.head_dim:
            return None, 1.0
        if self._context.sensitivity is not None:
            known = self._context.sensitivity
            return known.basis(keep), self._value_share(known.value_spectrum)
        moments = fit if held_out is None else fit + held_out
        width = self._dense.attention_output.weight.shape[1]
        moment = value_basis.group_second_moment(
            moments.gram[:width, :width], heads, settings.head_dim
        )
        if method.value_basis == "pca":
            basis, spectrum = value_basis.pca_basis(moment, keep)
        else:
            fitted = self._fitted_output(fit, held_out, self._attention_space)[:width]
            basis, spectrum = value_basis.weighted_basis(moment, fitted, keep)
        return basis, self._value_share(spectrum)

    def _value_share(self, spectrum: Tensor) -> float:
        """Share of the spectra's sum that the kept dims of each KV group hold."""
        keep = self._plan.v_head_dim
        self._spectra.append(spectra.by_scores("value dims", "eigenvalue", spectrum, keep))
        return float(spectrum[..., :keep].sum() / spectrum.sum().clamp_min(1e-300))

    # -- MLP -------------------------------------------------------------------------------

    def _compress_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Choose neurons and refit the down projection; moves both streams up to the MLP's end."""
        fit, held_out = self._mlp_moments(weights)
        chosen = self._choose_neurons(fit, held_out)
        intact = self._plan.intermediate_size == self._dense.up.weight.shape[0]
        kept = chosen
        if self._dense.mlp_output.bias is not None:
            kept = torch.cat((kept, kept.new_tensor([fit.gram.shape[0] - 1])))
        outcome, output = self._refit(
            "mlp",
            compensation.select(fit, kept),
            held_out and compensation.select(held_out, kept),
            self._mlp_space.rows()[kept],
            intact,
        )
        sliced = slicing.slice_neurons(weights, chosen)
        projection = slicing.output_projection(
            self._mlp_space.solved(output), self._dense.mlp_output
        )
        return self._as_stored(replace(sliced, mlp_output=projection)), outcome

    def _mlp_moments(self, weights: LayerWeights) -> tuple[Moments, Moments | None]:
        """Moments of `u`; the dense stream passes its MLP, the compressed one its attention.

        In a parallel block the compressed stream stays at the block's input, which is what the MLP
        reads; what it adds to is behind the sliced attention all the same.
        """
        settings, space = self._context.settings, self._mlp_space
        fit, held_out = self._accumulators(space.output, own_is_linear=True)
        known = self._pass.restore_dense("mlp")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            between = self._pass.after_attention(hidden, weights)
            if not settings.parallel_block:
                hidden = between
                self._pass.store_compressed(rows, hidden)
            inner = decoder_layer.mlp_inner(hidden, self._dense, settings)
            seen = space.observe(inner, inner)
            star = self._pass.advance_dense(rows, known, self._pass.after_mlp)
            correction = None if star is None else space.correction(star - between, seen)
            sums = held_out if held_out is not None and self._pass.is_held_out(rows) else fit
            _add(sums, seen, correction)
        self._pass.keep_dense("mlp", known)
        return _moments(fit, held_out, space)

    def _choose_neurons(self, fit: Moments, held_out: Moments | None) -> Tensor:
        """The neurons that stay, ascending, (intermediate_size,)."""
        method, keep = self._context.method, self._plan.intermediate_size
        if self._context.sensitivity is not None:
            losses = self._context.sensitivity.width_losses
            self._spectra.append(spectra.by_losses("MLP neurons", losses, keep))
            return self._context.sensitivity.neurons(keep)
        width = self._dense.up.weight.shape[0]
        moments = fit if held_out is None else fit + held_out
        gram = moments.gram[:width, :width]
        if method.neuron_choice == "energy":
            score = neurons.energy_score(gram, self._mlp_space.rows()[:width])
            choice = neurons.keep_best_neurons(score, keep)
        else:
            fitted = self._fitted_output(fit, held_out, self._mlp_space)[:width]
            factor = linalg.damped_cholesky(gram, method.choice_damping)
            choice = neurons.obs_elimination(factor, fitted, keep)
        self._spectra.append(spectra.by_scores("MLP neurons", "score", choice.score, keep))
        return choice.kept

    def _as_stored(self, weights: LayerWeights) -> LayerWeights:
        return slicing.rounded_to(weights, self._context.stored_dtype)

    # -- least squares ---------------------------------------------------------------------

    def _fitted_output(self, fit: Moments, held_out: Moments | None, space: OutputSpace) -> Tensor:
        """The un-pruned output projection fitted to the target, (inner [+ 1], hidden_size).

        Chooses the correction's damping for the module: the refit after the choice sees the same
        tokens and the same target, so it takes that damping over.
        """
        method = self._context.method
        prior = space.rows() if method.shrink_to_weights else None
        dampings = compensation.Dampings(
            own=(method.choice_damping,),
            correction=method.damping_correction,
            per_dimension=method.damping_per_dimension,
        )
        fitted = compensation.fit_output(fit, held_out, prior, dampings)
        if fitted.damping_correction is not None:
            self._correction_candidates = (fitted.damping_correction,)
        return fitted.weight

    def _refit(
        self, module: str, fit: Moments, held_out: Moments | None, prior: Tensor, intact: bool
    ) -> tuple[ModuleOutcome, Tensor]:
        """The output projection of a pruned module, fitted where the method fits."""
        method = self._context.method
        everything = fit if held_out is None else fit + held_out
        if intact and not method.dense_target:
            error = compensation.relative_error(everything, prior)
            return ModuleOutcome(module=module, relative_error=error), prior
        dampings = compensation.Dampings(
            own=method.damping_own,
            correction=self._correction_candidates,
            per_dimension=method.damping_per_dimension,
        )
        prior_or_zero = prior if method.shrink_to_weights else None
        fitted = compensation.fit_output(fit, held_out, prior_or_zero, dampings)
        damping = {"own": fitted.damping_own}
        if fitted.damping_correction is not None:
            damping["correction"] = fitted.damping_correction
        outcome = ModuleOutcome(
            module=module, relative_error=fitted.relative_error, damping=damping
        )
        return outcome, fitted.weight


def _moments(
    fit: MomentAccumulator, held_out: MomentAccumulator | None, space: OutputSpace
) -> tuple[Moments, Moments | None]:
    """What both accumulators have seen."""
    rows = space.rows()
    return fit.moments(rows), None if held_out is None else held_out.moments(rows)


def _add(sums: MomentAccumulator, seen: Observation, correction: Tensor | None) -> None:
    """Flatten a batch to tokens and accumulate."""
    sums.add(
        seen.inner.flatten(0, 1),
        seen.own.flatten(0, 1),
        None if correction is None else correction.flatten(0, 1),
    )


def _no_pairs(device: torch.device) -> Tensor:
    """The kept pairs of a layer without attention."""
    return torch.empty(0, 0, dtype=torch.long, device=device)
