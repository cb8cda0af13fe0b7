"""Layers cut to a plan and refitted to their own output by the dense layer's moments.

Trial cuts and trial compressions use them (docs/method.md, section 4). The compression itself
refits by the hidden states of the compressed model and towards those of the dense one; a trial only
has to rank shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from intraslice_core import linalg, slicing
from intraslice_core.compensation import attention_space, mlp_space
from intraslice_core.decoder_layer import LayerSettings, LayerWeights
from intraslice_core.plan import LayerPlan
from intraslice_core.sensitivity.dense_pass import InnerMoments
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity


@dataclass(frozen=True, kw_only=True)
class CuttableLayer:
    """Dense layer with its sensitivity and moments."""

    weights: LayerWeights
    settings: LayerSettings
    sensitivity: LayerSensitivity
    """On the layer's device."""
    moments: InnerMoments
    damping: float
    """Relative damping of the refit."""
    per_dimension: bool = False
    """Damp each dimension in proportion to its own energy."""

    def cut(self, plan: LayerPlan) -> LayerWeights:
        """Return the layer with the sizes of the plan, refitted module by module.

        Raises:
            NumericalError: if a refit or a selection fails.
        """
        return self.cut_mlp(self.cut_attention(self.weights, plan), plan)

    def cut_attention(self, weights: LayerWeights, plan: LayerPlan) -> LayerWeights:
        """Cut pairs, value dimensions and heads of `weights` and refit the output projection.

        The moments are those with all pairs in place.
        """
        if plan.num_attention_heads == 0:
            return slicing.remove_attention(weights)
        settings, sensitivity = self.settings, self.sensitivity
        if plan.qk_pairs < settings.head_dim // 2:
            _, weights = sensitivity.queries_and_keys(weights, plan.qk_pairs, settings)
        projection = self._attention_projection(plan)
        if projection is None:
            return weights
        if plan.v_head_dim < settings.head_dim:
            weights = slicing.project_values(weights, sensitivity.basis(plan.v_head_dim))
        if plan.num_attention_heads < settings.num_attention_heads:
            heads = sensitivity.heads(plan.num_key_value_heads, _group_size(plan))
            weights = slicing.slice_heads(
                weights, heads.groups, heads.queries, settings, sensitivity.energies
            )
        space = attention_space(self.weights, settings)
        cross, rows = linalg.product(projection.mT, self.moments.attention), space.rows()
        prior = projection.mT @ rows
        factor = self._factor(linalg.product(cross, projection))
        fitted = prior + factor.solve(linalg.product(cross, rows - projection @ prior))
        output = slicing.output_projection(space.unscaled(fitted), self.weights.attention_output)
        return replace(weights, attention_output=output)

    def _attention_projection(self, plan: LayerPlan) -> Tensor | None:
        """Return `P` from the dense inner activations to the kept ones; None keeps all."""
        settings, sensitivity = self.settings, self.sensitivity
        all_heads = plan.num_attention_heads == settings.num_attention_heads
        if all_heads and plan.v_head_dim == settings.head_dim:
            return None
        moment = self.moments.attention
        if plan.v_head_dim < settings.head_dim:
            basis = sensitivity.basis(plan.v_head_dim)
            projection = slicing.value_projection(basis, settings.num_attention_heads)
        else:
            width = settings.num_attention_heads * settings.head_dim
            projection = torch.eye(width, dtype=moment.dtype, device=moment.device)
        if not all_heads:
            heads = sensitivity.heads(plan.num_key_value_heads, _group_size(plan))
            group = settings.num_attention_heads // settings.num_key_value_heads
            projection = projection[:, heads.columns(group, plan.v_head_dim)]
        return slicing.with_bias_row(projection, self.weights.attention_output)

    def cut_mlp(self, weights: LayerWeights, plan: LayerPlan) -> LayerWeights:
        """Cut the neurons of `weights` and refit the down projection.

        The neurons kept at any width come last in the removal order. With these first, one factor
        of `H` serves all widths.
        """
        width = self.weights.up.weight.shape[0]
        if plan.intermediate_size == 0:
            return slicing.remove_mlp(weights)
        if plan.intermediate_size == width:
            return weights
        space, order = mlp_space(self.weights, self.settings), self._input_order
        rows, keep = space.rows()[order], plan.intermediate_size + len(order) - width
        fitted = self._mlp_factor.refit_leading(rows, keep)
        kept_inputs, positions = order[:keep].sort()
        kept_neurons = kept_inputs[: plan.intermediate_size]
        weights = slicing.slice_neurons(weights, kept_neurons)
        fitted = space.unscaled(fitted[positions])
        output = slicing.output_projection(fitted, self.weights.mlp_output)
        return replace(weights, mlp_output=output)

    @cached_property
    def _input_order(self) -> Tensor:
        """Inputs of the down projection, the last removed first; a bias comes before all."""
        neurons = self.sensitivity.neuron_order.flip(0)
        bias = torch.arange(len(neurons), len(self.moments.mlp), device=neurons.device)
        return torch.cat((bias, neurons))

    @cached_property
    def _mlp_factor(self) -> linalg.Factor:
        """Damped Cholesky factor of the MLP's moment in that order."""
        return self._factor(linalg.submatrix(self.moments.mlp, self._input_order))

    def _factor(self, gram: Tensor) -> linalg.Factor:
        return linalg.damped_cholesky(gram, self.damping, per_dimension=self.per_dimension)


def _group_size(plan: LayerPlan) -> int:
    """Return the query heads in each KV group of a plan."""
    return plan.num_attention_heads // plan.num_key_value_heads
