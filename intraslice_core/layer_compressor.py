"""Compression of one decoder layer (docs/method.md, end of section 5).

Order: select rotary pairs → recompute attention with them → select value basis and heads → refit
the output projection → advance the hidden states past the attention → select neurons → refit the
down projection → advance the hidden states past the layer. The compressed hidden states advance
with the sliced weights as they will be saved, so that later layers see what the saved model
computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intraslice_core import compensation, decoder_layer, linalg, slicing
from intraslice_core.compensation import (
    OutputSpace,
    SplitAccumulator,
    attention_space,
    mlp_space,
)
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.errors import NumericalError
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass
from intraslice_core.magnitude_pruning import prune_by_magnitude
from intraslice_core.plan import LayerPlan, Module
from intraslice_core.selection import neurons, rotary_pairs, spectra, value_basis
from intraslice_core.selection.spectra import Spectrum
from intraslice_core.sensitivity.layer_sensitivity import KeptHeads, first_heads
from intraslice_core.statistics import (
    HeadEnergies,
    HeadEnergyAccumulator,
    Moments,
    RotaryAccumulator,
    RotaryStatistics,
)


@dataclass(frozen=True, kw_only=True)
class ModuleOutcome:
    """Measurements of one compressed module."""

    module: Module
    relative_error: float | None = None
    """Error of the refit relative to its target's energy; None without refit."""
    explained_energy: float | None = None
    """Share of the value spectrum that the basis keeps; None for the MLP."""
    damping: dict[str, float] = field(default_factory=dict)
    """Dampings used, by the regression's part (`own`, `correction`)."""
    spectra: tuple[Spectrum, ...] = ()
    """Spectra of the selections, one per dimension that was cut."""


@dataclass(frozen=True, kw_only=True)
class LayerOutcome:
    """A sliced layer and its measurements."""

    weights: LayerWeights
    kept_pairs: Tensor
    """(num_key_value_heads, pairs), ascending, int64."""
    attention: ModuleOutcome
    mlp: ModuleOutcome
    seconds: float


@contextmanager
def _errors_located_at(layer: int, module: Module) -> Iterator[None]:
    """Add layer and module to a `NumericalError` raised inside the context."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(
            error.message, layer=layer, module=error.module or module, hint=error.hint
        ) from error


class LayerCompressor:
    """Compresses one layer and advances both hidden states past it."""

    def __init__(
        self, weights: LayerWeights, plan: LayerPlan, states: HiddenStates, context: LayerContext
    ) -> None:
        self._dense = weights
        self._plan = plan
        self._context = context
        self._pass = LayerPass(weights, states, context)
        self._spectra: list[Spectrum] = []
        self._attention_space = attention_space(weights, context.settings)
        self._mlp_space = mlp_space(weights, context.settings)
        self._correction_candidates = context.method.damping_correction

    def run(self) -> LayerOutcome:
        """Compress the layer.

        Raises:
            NumericalError: naming the layer and the module.
        """
        started = time.perf_counter()
        if not self._context.method.compensate:
            return self._prune_by_magnitude()
        with _errors_located_at(self._context.layer, "attention"):
            pairs, weights, attention = self._run_attention()
        self._correction_candidates = self._context.method.damping_correction
        with _errors_located_at(self._context.layer, "mlp"):
            weights, mlp = self._run_mlp(weights)
            self._pass.advance_mlp(weights)
        return LayerOutcome(
            weights=weights,
            kept_pairs=pairs,
            attention=attention,
            mlp=mlp,
            seconds=time.perf_counter() - started,
        )

    def replay(self, weights: LayerWeights) -> None:
        """Advance both hidden states past a layer that an interrupted run has compressed.

        Args:
            weights: the sliced layer as that run saved it.
        """
        self._pass.replay(weights)

    def _pop_spectra(self) -> tuple[Spectrum, ...]:
        """Return and clear the spectra of the module just compressed."""
        collected, self._spectra = tuple(self._spectra), []
        return collected

    def _prune_by_magnitude(self) -> LayerOutcome:
        """Cut the layer without data; the hidden states are not used and do not advance."""
        started = time.perf_counter()
        self._context.before_batch(0.0)
        weights, pairs = prune_by_magnitude(self._dense, self._plan, self._context.settings)
        return LayerOutcome(
            weights=self._as_stored(weights),
            kept_pairs=pairs,
            attention=ModuleOutcome(module="attention"),
            mlp=ModuleOutcome(module="mlp"),
            seconds=time.perf_counter() - started,
        )

    # -- removed modules -------------------------------------------------------------------

    def _remove_attention(self) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
        """Remove the attention; the dense hidden states still pass the dense attention."""
        self._pass.skip()
        restored = self._pass.restore_dense("attention")
        for rows in self._pass.batches():
            self._pass.advance_dense(rows, restored, self._pass.after_attention, "attention")
        self._pass.keep_dense("attention", restored)
        weights = self._as_stored(slicing.remove_attention(self._dense))
        pairs = slicing.no_pairs(self._context.device)
        return pairs, weights, ModuleOutcome(module="attention")

    def _remove_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Remove the MLP; both hidden states advance as in `_mlp_moments`."""
        restored = self._pass.restore_dense("mlp")
        for rows in self._pass.batches():
            if not self._context.settings.parallel_block:
                hidden = self._pass.compressed(rows)
                between = self._pass.after_attention(hidden, weights)
                self._pass.store_compressed(rows, between)
            self._pass.advance_dense(rows, restored, self._pass.after_mlp)
        self._pass.keep_dense("mlp", restored)
        weights = self._as_stored(slicing.remove_mlp(weights))
        return weights, ModuleOutcome(module="mlp")

    # -- attention -------------------------------------------------------------------------

    def _run_attention(self) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
        """Compress or remove the attention; return kept pairs, weights and measurements."""
        if self._plan.num_attention_heads == 0:
            return self._remove_attention()
        pairs, pruned = self._prune_pairs()
        heads = self._select_heads()
        weights, outcome = self._compress_attention(pruned, heads)
        pairs = pairs if heads is None else pairs[heads.groups]
        return pairs, weights, replace(outcome, spectra=self._pop_spectra())

    def _prune_pairs(self) -> tuple[Tensor, LayerWeights]:
        """Return the kept rotary pairs, (num_key_value_heads, pairs), and the layer with them."""
        settings, keep = self._context.settings, self._plan.qk_pairs
        total = settings.head_dim // 2
        if keep == total:
            self._pass.skip()
            pairs = torch.arange(total, device=self._context.device)
            return pairs.expand(settings.num_key_value_heads, total), self._dense
        sensitivity = self._context.sensitivity
        if sensitivity is not None:
            self._pass.skip()
            spectrum = spectra.loss_spectrum("rotary pairs", sensitivity.pair_losses, keep)
            self._spectra.append(spectrum)
            return sensitivity.queries_and_keys(self._dense, keep, settings)
        return self._prune_pairs_by_score()

    def _prune_pairs_by_score(self) -> tuple[Tensor, LayerWeights]:
        """Prune pairs by their score on the compressed hidden states; return as `_prune_pairs`."""
        settings, keep = self._context.settings, self._plan.qk_pairs
        statistics, energies = self._pair_statistics()
        if self._context.method.pair_score == "product":
            score = rotary_pairs.product_score(statistics)
        else:
            score = rotary_pairs.centered_score(statistics)
        self._spectra.append(spectra.score_spectrum("rotary pairs", "score", score, keep))
        pairs = rotary_pairs.keep_best_pairs(score, keep)
        return pairs, slicing.slice_rotary_pairs(self._dense, pairs, settings, energies)

    def _pair_statistics(self) -> tuple[RotaryStatistics, HeadEnergies]:
        """Return statistics of queries and keys after RoPE, and energies before norm and RoPE."""
        context, settings = self._context, self._context.settings
        shape = {
            "num_key_value_heads": settings.num_key_value_heads,
            "pairs": settings.head_dim // 2,
            "prefix_length": self._pass.prefix_length,
        }
        rotated = RotaryAccumulator(**shape, device=context.device)
        projected = HeadEnergyAccumulator(
            **shape, num_attention_heads=settings.num_attention_heads, device=context.device
        )
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            normed = decoder_layer.attention_inputs(hidden, self._dense, settings)
            heads = decoder_layer.queries_and_keys(normed, self._dense)
            projected.add(*heads)
            rotated.add(
                *decoder_layer.normed_and_rotated(*heads, self._dense, settings, context.rotary)
            )
        return rotated.statistics(), projected.energies()

    def _select_heads(self) -> KeptHeads | None:
        """Return the heads to keep; None keeps all.

        Heads are selected by sensitivities measured with all heads in place. They are sliced after
        the value basis is chosen: moments are of all heads, and the refit reads the kept ones.
        """
        plan, settings = self._plan, self._context.settings
        sensitivity = self._context.sensitivity
        if plan.num_attention_heads == settings.num_attention_heads:
            return None
        groups = plan.num_key_value_heads
        if sensitivity is None:  # an earlier compression removed heads; the real ones come first
            return first_heads(groups, plan.num_attention_heads // groups, self._context.device)
        return sensitivity.heads(groups, plan.num_attention_heads // groups)

    def _compress_attention(
        self, pruned: LayerWeights, heads: KeptHeads | None
    ) -> tuple[LayerWeights, ModuleOutcome]:
        """Select the value basis and refit the output projection.

        Args:
            pruned: layer with sliced queries and keys.
            heads: heads to keep; None keeps all.
        """
        dense_output = self._dense.attention_output
        fit, held_out = self._attention_moments(pruned)
        basis, explained = self._select_value_basis(fit, held_out)
        intact = basis is None and heads is None and pruned is self._dense
        projection = self._attention_projection(basis, heads)
        if basis is not None:
            pruned = slicing.project_values(pruned, basis)
        if heads is not None:
            sensitivity = self._context.sensitivity
            pruned = slicing.slice_heads(
                pruned,
                heads.groups,
                heads.queries,
                self._context.settings,
                None if sensitivity is None else sensitivity.energies,
            )
        outcome, fitted = self._refit(
            "attention",
            compensation.project(fit, projection),
            held_out and compensation.project(held_out, projection),
            projection.mT @ self._attention_space.rows(),
            intact,
        )
        output = slicing.output_projection(self._attention_space.unscaled(fitted), dense_output)
        weights = self._as_stored(replace(pruned, attention_output=output))
        return weights, replace(outcome, explained_energy=explained)

    def _attention_projection(self, basis: Tensor | None, heads: KeptHeads | None) -> Tensor:
        """Return `P` from the dense inner activations (and bias) to the kept ones, float64."""
        settings, output = self._context.settings, self._dense.attention_output
        if basis is not None:
            projection = slicing.value_projection(basis, settings.num_attention_heads)
        else:
            projection = torch.eye(
                output.weight.shape[1], dtype=linalg.WORKING_DTYPE, device=self._context.device
            )
        if heads is not None:
            group = settings.num_attention_heads // settings.num_key_value_heads
            projection = projection[:, heads.columns(group, self._plan.v_head_dim)]
        return slicing.with_bias_row(projection, output)

    def _attention_moments(self, pruned: LayerWeights) -> tuple[Moments, Moments | None]:
        """Return moments of the pruned attention's `o`; advance the dense hidden states past it."""
        settings, rotary = self._context.settings, self._context.rotary
        space = self._attention_space
        moments = self._accumulator(space, own_is_linear=pruned is self._dense)
        restored = self._pass.restore_dense("attention")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            normed = decoder_layer.attention_inputs(hidden, self._dense, settings)
            inner = full = decoder_layer.attention_inner(normed, self._dense, settings, rotary)
            if pruned is not self._dense:
                inner = decoder_layer.attention_inner(normed, pruned, settings, rotary)
            observation = space.observe(full, inner)
            after_attention = self._pass.after_attention
            dense = self._pass.advance_dense(rows, restored, after_attention, "attention")
            target = None if dense is None else dense - hidden
            after = hidden + observation.added if dense is None else dense
            moments.add(observation, target, after, is_held_out=self._pass.is_held_out(rows))
        self._pass.keep_dense("attention", restored)
        return moments.moments()

    def _select_value_basis(
        self, fit: Moments, held_out: Moments | None
    ) -> tuple[Tensor | None, float | None]:
        """Return each KV group's basis (None keeps all dimensions) and its share of the spectrum.

        The basis is (num_key_value_heads, head_dim, v_head_dim), float64.
        """
        settings, keep = self._context.settings, self._plan.v_head_dim
        if keep == settings.head_dim:
            return None, 1.0
        sensitivity = self._context.sensitivity
        if sensitivity is not None:
            return sensitivity.basis(keep), self._value_share(sensitivity.value_spectrum)
        moments = fit if held_out is None else fit + held_out
        width = self._dense.attention_output.weight.shape[1]
        moment = value_basis.group_second_moment(
            moments.gram[:width, :width], settings.num_key_value_heads, settings.head_dim
        )
        if self._context.method.value_basis == "pca":
            basis, spectrum = value_basis.pca_basis(moment, keep)
        else:
            fitted = self._fitted_output(fit, held_out, self._attention_space)[:width]
            basis, spectrum = value_basis.weighted_basis(moment, fitted, keep)
        return basis, self._value_share(spectrum)

    def _value_share(self, spectrum: Tensor) -> float:
        """Return the share of the spectra's sum that the kept dimensions of the groups hold."""
        keep = self._plan.v_head_dim
        self._spectra.append(spectra.score_spectrum("value dims", "eigenvalue", spectrum, keep))
        return float(spectrum[..., :keep].sum() / spectrum.sum().clamp_min(1e-300))

    # -- MLP -------------------------------------------------------------------------------

    def _run_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Compress or remove the MLP; return weights and measurements."""
        if self._plan.intermediate_size == 0:
            return self._remove_mlp(weights)
        weights, outcome = self._compress_mlp(weights)
        return weights, replace(outcome, spectra=self._pop_spectra())

    def _compress_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Select neurons and refit the down projection.

        Args:
            weights: layer with its attention compressed.
        """
        fit, held_out = self._mlp_moments(weights)
        kept_neurons = self._select_neurons(fit, held_out)
        intact = self._plan.intermediate_size == self._dense.up.weight.shape[0]
        inputs = kept_neurons
        if self._dense.mlp_output.bias is not None:
            inputs = torch.cat((kept_neurons, kept_neurons.new_tensor([fit.gram.shape[0] - 1])))
        outcome, fitted = self._refit(
            "mlp",
            compensation.select(fit, inputs),
            held_out and compensation.select(held_out, inputs),
            self._mlp_space.rows()[inputs],
            intact,
        )
        sliced = slicing.slice_neurons(weights, kept_neurons)
        output = slicing.output_projection(self._mlp_space.unscaled(fitted), self._dense.mlp_output)
        return self._as_stored(replace(sliced, mlp_output=output)), outcome

    def _mlp_moments(self, weights: LayerWeights) -> tuple[Moments, Moments | None]:
        """Return moments of `u`; advance the dense hidden states past the MLP.

        The compressed hidden states advance past the attention. In a parallel layer they stay at
        the layer's input, which the MLP reads; its contribution is still added after the sliced
        attention.
        """
        settings, space = self._context.settings, self._mlp_space
        moments = self._accumulator(space, own_is_linear=True)
        restored = self._pass.restore_dense("mlp")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            between = self._pass.after_attention(hidden, weights)
            if not settings.parallel_block:
                hidden = between
                self._pass.store_compressed(rows, hidden)
            inner = decoder_layer.mlp_inner(hidden, self._dense, settings)
            observation = space.observe(inner, inner)
            dense = self._pass.advance_dense(rows, restored, self._pass.after_mlp)
            target = None if dense is None else dense - between
            after = between + observation.added if dense is None else dense
            moments.add(observation, target, after, is_held_out=self._pass.is_held_out(rows))
        self._pass.keep_dense("mlp", restored)
        return moments.moments()

    def _select_neurons(self, fit: Moments, held_out: Moments | None) -> Tensor:
        """Return the neurons to keep, ascending, (intermediate_size,), int64."""
        method, keep = self._context.method, self._plan.intermediate_size
        sensitivity = self._context.sensitivity
        if sensitivity is not None:
            spectrum = spectra.loss_spectrum("MLP neurons", sensitivity.width_losses, keep)
            self._spectra.append(spectrum)
            return sensitivity.neurons(keep)
        width = self._dense.up.weight.shape[0]
        moments = fit if held_out is None else fit + held_out
        gram = moments.gram[:width, :width]
        if method.neuron_choice == "energy":
            score = neurons.energy_score(gram, self._mlp_space.rows()[:width])
            choice = neurons.keep_best_neurons(score, keep)
        else:
            fitted = self._fitted_output(fit, held_out, self._mlp_space)[:width]
            factor = linalg.damped_cholesky(gram, method.choice_damping)
            choice = neurons.eliminate_neurons(factor, fitted, keep)
        self._spectra.append(spectra.score_spectrum("MLP neurons", "score", choice.score, keep))
        return choice.kept

    def _as_stored(self, weights: LayerWeights) -> LayerWeights:
        """Round the layer to the dtype of the saved model."""
        return slicing.rounded_to(weights, self._context.stored_dtype)

    # -- least squares ---------------------------------------------------------------------

    def _accumulator(self, space: OutputSpace, *, own_is_linear: bool) -> SplitAccumulator:
        """Return an accumulator for one module; held-out sequences are kept apart."""
        return SplitAccumulator(
            space,
            self._context.device,
            own_is_linear=own_is_linear,
            has_held_out=self._pass.has_held_out,
            prefix_length=self._pass.prefix_length,
        )

    def _fitted_output(self, fit: Moments, held_out: Moments | None, space: OutputSpace) -> Tensor:
        """Fit the dense output projection to the target, (inner [+ 1], hidden_size), float64.

        This also chooses the correction's damping for the module: the refit after selection has
        the same tokens and the same target, so it reuses that damping.
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
        self, module: Module, fit: Moments, held_out: Moments | None, prior: Tensor, intact: bool
    ) -> tuple[ModuleOutcome, Tensor]:
        """Refit the output projection of a pruned module, (kept [+ 1], hidden_size), float64.

        Args:
            module: for the outcome.
            fit: moments of the kept inner activations.
            held_out: the same of held-out sequences, or None.
            prior: projected dense weight `PᵀW`.
            intact: whether nothing is removed; the weight then stays unless the target is dense.
        """
        method = self._context.method
        if intact and not method.dense_target:
            everything = fit if held_out is None else fit + held_out
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
