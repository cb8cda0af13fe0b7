"""Magnitude pruning of one layer: selection by weight norms alone, without calibration or refit."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights
from intraslice_core.plan import LayerPlan
from intraslice_core.selection import neurons, rotary_pairs, value_basis


def prune_by_magnitude(
    weights: LayerWeights, plan: LayerPlan, settings: LayerSettings
) -> tuple[LayerWeights, Tensor]:
    """Cut a layer to the plan's sizes by weight norms; head counts are dense or 0.

    Args:
        weights: dense layer.
        plan: sizes to keep.
        settings: of the layer.

    Returns:
        The sliced layer and its kept pairs, (num_key_value_heads, pairs), ascending, int64.
    """
    weights, pairs = _prune_attention(weights, plan, settings)
    return _prune_mlp(weights, plan.intermediate_size), pairs


def _prune_attention(
    weights: LayerWeights, plan: LayerPlan, settings: LayerSettings
) -> tuple[LayerWeights, Tensor]:
    """Return the layer with its attention cut, and the kept pairs."""
    if plan.num_attention_heads == 0:
        return slicing.remove_attention(weights), slicing.no_pairs(weights.key.weight.device)
    groups, output = settings.num_key_value_heads, weights.attention_output
    score = rotary_pairs.magnitude_score(weights.query.weight, weights.key.weight, groups)
    pairs = rotary_pairs.keep_best_pairs(score, plan.qk_pairs)
    basis = value_basis.magnitude_basis(
        weights.value.weight, output.weight.mT, groups, plan.v_head_dim
    )
    projection = slicing.value_projection(basis, settings.num_attention_heads)
    energies = slicing.weight_energies(weights)
    weights = slicing.slice_rotary_pairs(weights, pairs, settings, energies)
    weights = slicing.project_values(weights, basis)
    sliced_output = slicing.project_inputs(output, projection)
    return replace(weights, attention_output=sliced_output), pairs


def _prune_mlp(weights: LayerWeights, keep: int) -> LayerWeights:
    """Return the layer with `keep` neurons of its MLP."""
    if keep == 0:
        return slicing.remove_mlp(weights)
    output = weights.mlp_output
    gate = None if weights.gate is None else weights.gate.weight
    score = neurons.magnitude_score(gate, weights.up.weight, output.weight.mT)
    kept_neurons = neurons.keep_best_neurons(score, keep).kept
    weights = slicing.slice_neurons(weights, kept_neurons)
    return replace(weights, mlp_output=slicing.select_inputs(output, kept_neurons))
