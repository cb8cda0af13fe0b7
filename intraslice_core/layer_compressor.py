"""Compression of one decoder layer (docs/method.md, end of section 5).

Order: select rotary pairs → recompute attention with them → select value basis and heads → refit
the output projection → advance the hidden states past the attention → select neurons → refit the
down projection → advance the hidden states past the layer. The compressed hidden states advance
with the sliced weights as they will be saved, so that later layers see what the saved model
computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from intraslice_core import compensation, decoder_layer, linalg, slicing
from intraslice_core.attention_decomposition import decompose_attention
from intraslice_core.compensation import (
    Observation,
    OutputSpace,
    Regressors,
    SplitAccumulator,
    attention_space,
    mlp_space,
)
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device import return_free_memory
from intraslice_core.direct_pruning import prune_directly
from intraslice_core.hidden_states import HiddenStates, LayerContext, LayerPass
from intraslice_core.pair_statistics import pair_statistics
from intraslice_core.plan import LayerPlan
from intraslice_core.refit import ModuleOutcome, Refit, errors_located_at
from intraslice_core.removed_modules import remove_attention, remove_mlp
from intraslice_core.residual_parts_compression import compress_residual_parts
from intraslice_core.selection import neurons, rotary_pairs, spectra, value_basis
from intraslice_core.selection.spectra import Spectrum
from intraslice_core.sensitivity.layer_sensitivity import KeptHeads, LayerSensitivity, first_heads
from intraslice_core.statistics import Moments

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class LayerOutcome:
    """A sliced layer and its measurements."""

    weights: LayerWeights
    kept_pairs: Tensor
    """(num_key_value_heads, pairs), ascending, int64."""
    attention: ModuleOutcome
    mlp: ModuleOutcome
    seconds: float


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
        self._refit = self._new_refit()

    def run(self) -> LayerOutcome:
        """Compress the layer.

        Raises:
            NumericalError: naming the layer and the module.
        """
        started, context = time.perf_counter(), self._context
        if context.method.residual_parts:
            return self._compress_residual_parts()
        if not context.method.compensate:
            with errors_located_at(context.layer, "attention"):
                return self._prune_directly()
        with errors_located_at(context.layer, "attention"):
            pairs, weights, attention = self._run_attention()
        self._refit = self._new_refit()
        with errors_located_at(context.layer, "mlp"):
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

    def _prune_directly(self) -> LayerOutcome:
        """Cut the layer without refit; the compressed hidden states advance where they are used."""
        started = time.perf_counter()
        weights, rest = prune_directly(self._dense, self._plan, self._pass, self._context)
        weights = self._as_stored(weights)
        self._pass.replay(weights)
        return LayerOutcome(weights=weights, seconds=time.perf_counter() - started, **vars(rest))

    def _compress_residual_parts(self) -> LayerOutcome:
        """Cut what the modules read and write of the residual stream, and neurons."""
        started, settings = time.perf_counter(), self._context.settings
        outcome = compress_residual_parts(self._dense, self._plan, self._pass, self._context)
        pairs = torch.arange(settings.head_dim // 2, device=self._context.device)
        return LayerOutcome(
            kept_pairs=pairs.expand(settings.num_key_value_heads, -1),
            seconds=time.perf_counter() - started,
            **vars(outcome),
        )

    # -- attention -------------------------------------------------------------------------

    def _run_attention(self) -> tuple[Tensor, LayerWeights, ModuleOutcome]:
        """Compress or remove the attention; return kept pairs, weights and measurements."""
        if self._plan.num_attention_heads == 0:
            return remove_attention(self._dense, self._pass, self._context)
        if self._context.method.value_basis == "two_svds":
            return decompose_attention(self._dense, self._plan, self._pass, self._context)
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
        statistics, energies = pair_statistics(self._dense, self._pass, self._context)
        kind = self._context.method.pair_score
        assert kind != "magnitude"  # only methods without refit select by weights
        score = rotary_pairs.pair_score(kind, statistics)
        self._spectra.append(spectra.score_spectrum("rotary pairs", "score", score, keep))
        pairs = rotary_pairs.keep_best_pairs(score, keep)
        return pairs, slicing.slice_rotary_pairs(self._dense, pairs, settings, energies)

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

        With measured sensitivity all selections are known before any activation: moments are then
        those of the sliced attention itself, whose weights are rounded as they will be saved.

        Args:
            pruned: layer with sliced queries and keys.
            heads: heads to keep; None keeps all.
        """
        by_moments = (
            self._context.sensitivity is None
            and self._plan.v_head_dim < self._context.settings.head_dim
        )
        fit: Moments | None = None
        held_out: Moments | None = None
        if by_moments:
            fit, held_out = self._attention_moments(pruned, intact=pruned is self._dense)
        basis, explained = self._selected(lambda: self._select_value_basis(fit, held_out))
        intact = basis is None and heads is None and pruned is self._dense
        sliced = self._as_stored(self._slice_values_and_heads(pruned, basis, heads))
        projection = self._attention_projection(basis, heads)
        if fit is None:
            fit, held_out = self._attention_moments(sliced, intact=intact, is_final=True)
        else:
            fit = compensation.project(fit, projection)
            held_out = held_out and compensation.project(held_out, projection)
        prior = projection.mT @ self._attention_space.rows()
        outcome, fitted = self._refit.module("attention", fit, held_out, prior, intact)
        output = slicing.output_projection(
            self._attention_space.unscaled(fitted), self._dense.attention_output
        )
        weights = self._as_stored(replace(sliced, attention_output=output))
        return weights, replace(outcome, explained_energy=explained)

    def _slice_values_and_heads(
        self, pruned: LayerWeights, basis: Tensor | None, heads: KeptHeads | None
    ) -> LayerWeights:
        """Return the layer with values in the basis and without the removed heads.

        Its output projection is replaced by the refit.
        """
        if basis is not None:
            pruned = slicing.project_values(pruned, basis)
        if heads is None:
            return pruned
        sensitivity = self._context.sensitivity
        return slicing.slice_heads(
            pruned,
            heads.groups,
            heads.queries,
            self._context.settings,
            None if sensitivity is None else sensitivity.energies,
        )

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

    def _attention_moments(
        self, pruned: LayerWeights, *, intact: bool, is_final: bool = False
    ) -> tuple[Moments, Moments | None]:
        """Return moments of the pruned attention's `o`; advance the dense hidden states past it.

        Args:
            pruned: layer with sliced queries and keys, or with the whole attention sliced.
            intact: whether nothing is removed.
            is_final: whether the inner activations are those of the layer as it will be saved.
        """
        settings, rotary = self._context.settings, self._context.rotary
        space = self._attention_space
        width = pruned.num_attention_heads * self._value_width(pruned)
        moments = self._accumulator(space, own_is_linear=intact, width=width)
        restored = self._pass.restore_dense("attention")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            normed = decoder_layer.attention_inputs(hidden, self._dense, settings)
            inner = full = decoder_layer.attention_inner(normed, pruned, settings, rotary)
            if not intact:
                full = decoder_layer.attention_inner(normed, self._dense, settings, rotary)
            if is_final:
                self._pass.keep_inner(rows, inner)
            dense = self._pass.advance_dense(
                rows, restored, self._pass.after_attention, "attention"
            )
            needs_own = moments.needs_own(has_target=dense is not None)
            observation = space.observe(full, inner) if needs_own else space.regressors(inner)
            self._add(moments, rows, observation, hidden, dense)
        self._pass.keep_dense("attention", restored)
        return moments.moments()

    @staticmethod
    def _value_width(weights: LayerWeights) -> int:
        """Return the width of a value head."""
        return weights.value.weight.shape[0] // weights.num_key_value_heads

    def _add(
        self,
        moments: SplitAccumulator,
        rows: slice,
        observation: Regressors,
        hidden: Tensor,
        dense: Tensor | None,
    ) -> None:
        """Add a batch to a module's moments.

        Args:
            moments: of the module.
            rows: of the batch.
            observation: of the batch.
            hidden: compressed hidden states that the module's contribution is added to.
            dense: dense hidden states after the module; None to target its own output.
        """
        after = dense
        if dense is None and isinstance(observation, Observation):
            after = hidden + observation.added
        moments.add(
            observation,
            None if dense is None else dense - hidden,
            after,
            is_held_out=self._pass.is_held_out(rows),
        )

    def _select_value_basis(
        self, fit: Moments | None, held_out: Moments | None
    ) -> tuple[Tensor | None, float | None]:
        """Return each KV group's basis (None keeps all dimensions) and its share of the spectrum.

        The basis is (num_key_value_heads, head_dim, v_head_dim), float64. Moments are needed only
        without measured sensitivity.
        """
        settings, keep = self._context.settings, self._plan.v_head_dim
        if keep == settings.head_dim:
            return None, 1.0
        sensitivity = self._context.sensitivity
        if sensitivity is not None:
            return sensitivity.basis(keep), self._value_share(sensitivity.value_spectrum)
        assert fit is not None
        moments = fit if held_out is None else fit + held_out
        width = self._dense.attention_output.weight.shape[1]
        moment = value_basis.group_second_moment(
            moments.gram[:width, :width], settings.num_key_value_heads, settings.head_dim
        )
        if self._context.method.value_basis == "pca":
            basis, spectrum = value_basis.pca_basis(moment, keep)
        else:
            fitted = self._refit.dense_output(fit, held_out, self._attention_space)[:width]
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
            return remove_mlp(weights, self._pass, self._context)
        weights, outcome = self._compress_mlp(weights)
        return weights, replace(outcome, spectra=self._pop_spectra())

    def _compress_mlp(self, weights: LayerWeights) -> tuple[LayerWeights, ModuleOutcome]:
        """Select neurons and refit the down projection.

        Args:
            weights: layer with its attention compressed.
        """
        intact = self._plan.intermediate_size == self._dense.up.weight.shape[0]
        sensitivity, space = self._context.sensitivity, self._mlp_space
        if sensitivity is not None:
            kept_neurons = self._select_measured_neurons(sensitivity)
            fit, held_out = self._mlp_moments(weights, kept_neurons)
        else:
            fit, held_out = self._mlp_moments(weights, None)
            kept_neurons = self._selected(lambda: self._select_neurons(fit, held_out))
        return_free_memory()  # of the activations, before the largest matrices
        inputs = self._mlp_inputs(kept_neurons)
        if sensitivity is None:
            fit = compensation.select(fit, inputs)
            held_out = held_out and compensation.select(held_out, inputs)
        outcome, fitted = self._refit.module("mlp", fit, held_out, space.rows()[inputs], intact)
        sliced = slicing.slice_neurons(weights, kept_neurons)
        output = slicing.output_projection(space.unscaled(fitted), self._dense.mlp_output)
        return self._as_stored(replace(sliced, mlp_output=output)), outcome

    def _mlp_inputs(self, kept_neurons: Tensor) -> Tensor:
        """Return the rows of the down projection that stay, the one of a bias last."""
        width = self._dense.mlp_output.weight.shape[1]
        has_bias = self._dense.mlp_output.bias is not None
        return torch.cat((kept_neurons, kept_neurons.new_tensor([width] * has_bias)))

    def _mlp_moments(
        self, weights: LayerWeights, kept: Tensor | None
    ) -> tuple[Moments, Moments | None]:
        """Return moments of `u`; advance the dense hidden states past the MLP.

        The compressed hidden states advance past the attention. In a parallel layer they stay at
        the layer's input, which the MLP reads; its contribution is still added after the sliced
        attention.

        Args:
            weights: layer with its attention compressed.
            kept: neurons whose moments are wanted, ascending; None for all.
        """
        settings, dense_layer = self._context.settings, self._dense
        if kept is not None:
            dense_layer = slicing.neurons_first(self._dense, kept)
        space = mlp_space(dense_layer, settings)
        moments = self._accumulator(
            space, own_is_linear=True, kept=None if kept is None else len(kept)
        )
        restored = self._pass.restore_dense("mlp")
        for rows in self._pass.batches():
            hidden = self._pass.compressed(rows)
            between = self._pass.after_sliced_attention(rows, hidden, weights)
            if not settings.parallel_block:
                hidden = between
                self._pass.store_compressed(rows, hidden)
            dense = self._pass.advance_dense(rows, restored, self._pass.after_mlp)
            inner = decoder_layer.mlp_inner(hidden, dense_layer, settings)
            needs_own = moments.needs_own(has_target=dense is not None)
            observation = space.observe(inner, inner) if needs_own else space.regressors(inner)
            self._add(moments, rows, observation, between, dense)
        self._pass.keep_dense("mlp", restored)
        return moments.moments()

    def _select_measured_neurons(self, sensitivity: LayerSensitivity) -> Tensor:
        """Return the neurons to keep by measured sensitivity; result as `_select_neurons`."""
        keep = self._plan.intermediate_size
        self._spectra.append(spectra.loss_spectrum("MLP neurons", sensitivity.width_losses, keep))
        return sensitivity.neurons(keep)

    def _select_neurons(self, fit: Moments, held_out: Moments | None) -> Tensor:
        """Return the neurons to keep by moments, ascending, (intermediate_size,), int64."""
        method, keep = self._context.method, self._plan.intermediate_size
        width = self._dense.up.weight.shape[0]
        if keep == width:
            return torch.arange(width, device=self._context.device)
        by_obs = method.neuron_choice == "obs"
        fitted = self._refit.dense_output(fit, held_out, self._mlp_space) if by_obs else None
        gram = (fit if held_out is None else fit + held_out).gram[:width, :width]
        if fitted is not None:
            factor = linalg.damped_cholesky(gram, method.choice_damping)
            choice = neurons.eliminate_neurons(factor, fitted[:width], keep)
        else:
            score = neurons.energy_score(gram, self._mlp_space.rows()[:width])
            if method.neuron_choice == "leverage":
                score = neurons.leverage_score(gram, method.choice_damping)
            choice = neurons.keep_best_neurons(score, keep)
        self._spectra.append(spectra.score_spectrum("MLP neurons", "score", choice.score, keep))
        return choice.kept

    def _as_stored(self, weights: LayerWeights) -> LayerWeights:
        """Round the layer to the dtype of the saved model."""
        return slicing.rounded_to(weights, self._context.stored_dtype)

    # -- least squares ---------------------------------------------------------------------

    def _accumulator(
        self,
        space: OutputSpace,
        *,
        own_is_linear: bool,
        width: int | None = None,
        kept: int | None = None,
    ) -> SplitAccumulator:
        """Return an accumulator for one module; held-out sequences are kept apart."""
        return SplitAccumulator(
            space,
            self._context.device,
            own_is_linear=own_is_linear,
            has_held_out=self._pass.has_held_out,
            prefix_length=self._pass.prefix_length,
            width=width,
            kept=kept,
            ranks=self._pass.ranks,
        )

    # -- ranks -----------------------------------------------------------------------------

    def _new_refit(self) -> Refit:
        return Refit(
            self._context.method,
            leaves_out_sources=self._pass.leaves_out_sources,
            ranks=self._pass.ranks,
            owner=self._pass.owner,
        )

    def _selected(self, select: Callable[[], _Result]) -> _Result:
        """Return a selection that one rank makes, and record its spectra on all."""
        selection, self._spectra = self._pass.ranks.computed(
            self._pass.owner, lambda: (select(), self._spectra)
        )
        return selection
