"""Magnitude pruning of one layer: selection by weight norms alone, without calibration or refit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights
from intraslice_core.plan import LayerPlan
from intraslice_core.selection import neurons, rotary_pairs, value_basis


def prune_by_magnitude(
    weights: LayerWeights, plan: LayerPlan, settings: LayerSettings
) -> tuple[LayerWeights, Tensor]:
    """Cut a layer to the plan's sizes by weight norms; head counts are the input's or 0.

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
    if plan.num_attention_heads < settings.num_attention_heads:
        weights, settings = _without_zero_heads(weights, plan, settings)
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


def _without_zero_heads(
    weights: LayerWeights, plan: LayerPlan, settings: LayerSettings
) -> tuple[LayerWeights, LayerSettings]:
    """Return the layer without the heads that an earlier compression removed; they come last."""
    groups = plan.num_key_value_heads
    queries = plan.num_attention_heads // groups
    device = weights.key.weight.device
    kept_groups = torch.arange(groups, device=device)
    kept_queries = torch.arange(queries, device=device).expand(groups, queries)
    dense_queries = settings.num_attention_heads // settings.num_key_value_heads
    heads = (kept_groups.unsqueeze(-1) * dense_queries + kept_queries).flatten()
    columns = heads.unsqueeze(-1) * settings.head_dim + torch.arange(
        settings.head_dim, device=device
    )
    output = slicing.select_inputs(weights.attention_output, columns.flatten())
    sliced = slicing.slice_heads(weights, kept_groups, kept_queries, settings)
    return replace(sliced, attention_output=output), replace(
        settings, num_attention_heads=plan.num_attention_heads, num_key_value_heads=groups
    )


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
