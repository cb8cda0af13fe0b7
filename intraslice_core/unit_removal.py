"""Removal of whole heads and neurons of one layer by scores, without refit.

The scores are those of FLAP (arXiv 2312.11983), of Wanda structured as in FLAP's code (Wanda-sp),
of 2SSP (arXiv 2501.17771) and of TransAct (arXiv 2407.05690). All follow from means and mean
squares of inner activations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from intraslice_core import slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear
from intraslice_core.diagonal_moments import LayerActivations
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.methods import UnitScore
from intraslice_core.plan import LayerPlan
from intraslice_core.selection.activation_scores import (
    fluctuation_score,
    head_lengths,
    standardised,
    wanda_score,
)

BiasCompensation = Literal["none", "existing", "added"]


@dataclass(frozen=True, kw_only=True)
class LayerUnits:
    """Scores of one layer's inner activations, and their means; float64."""

    attention: Tensor | None
    """Scores of the output projection's inputs, (num_attention_heads · head_dim,); None for
    methods that do not rank heads."""
    mlp: Tensor
    """Scores of the neurons, (intermediate_size,)."""
    attention_mean: Tensor
    """`E[o]`, (num_attention_heads · head_dim,)."""
    mlp_mean: Tensor
    """`E[u]`, (intermediate_size,)."""

    def to(self, device: torch.device | str) -> LayerUnits:
        """Return the scores on a device."""
        return LayerUnits(
            attention=None if self.attention is None else self.attention.to(device),
            mlp=self.mlp.to(device),
            attention_mean=self.attention_mean.to(device),
            mlp_mean=self.mlp_mean.to(device),
        )

    def heads(self, num_attention_heads: int) -> Tensor | None:
        """Return the mean score of each head's inputs, (num_attention_heads,); None without."""
        if self.attention is None:
            return None
        return self.attention.view(num_attention_heads, -1).mean(1)

    def comparable(self, num_attention_heads: int) -> tuple[Tensor, Tensor]:
        """Return scores of heads and of neurons that compare across modules and layers.

        Each module's scores are standardised before a head's are averaged, as in FLAP's code.
        """
        assert self.attention is not None
        heads = standardised(self.attention).view(num_attention_heads, -1).mean(1)
        return heads, standardised(self.mlp)


def score_units(
    score: UnitScore, activations: LayerActivations, weights: LayerWeights
) -> LayerUnits:
    """Score the inner activations of both modules of a layer.

    Args:
        score: `fluctuation` is FLAP's weighted variance; its code squares that of the attention.
            `wanda` is `√E[z²] · mean|W|`. `norm` is 2SSP's mean length of a neuron's activations
            in a sequence, and does not rank heads. `length` is TransAct's `√E[z²]`; its score of a
            head, the mean plus `10 / head_dim` times the largest, is given to all of its inputs.
        activations: moments of the inner activations.
        weights: of the layer.
    """
    attention, mlp = activations.attention, activations.mlp
    attention_scores: Tensor | None
    heads = weights.attention_output.weight.mT
    neurons = weights.mlp_output.weight.mT
    if score == "fluctuation":
        attention_scores = fluctuation_score(attention.mean, attention.energy, heads).square()
        mlp_scores = fluctuation_score(mlp.mean, mlp.energy, neurons)
    elif score == "wanda":
        attention_scores = wanda_score(attention.energy, heads)
        mlp_scores = wanda_score(mlp.energy, neurons)
    elif score == "length":
        attention_scores = head_lengths(attention.energy, weights.num_attention_heads)
        mlp_scores = mlp.energy.sqrt()
    else:
        attention_scores, mlp_scores = None, mlp.norm
    return LayerUnits(
        attention=attention_scores,
        mlp=mlp_scores,
        attention_mean=attention.mean,
        mlp_mean=mlp.mean,
    )


def keep_best_heads(
    scores: Tensor, num_key_value_heads: int, groups: int, queries: int
) -> tuple[Tensor, Tensor]:
    """Return the KV groups of highest sum of scores and the best query heads within each.

    Args:
        scores: (num_attention_heads,); the query heads of a group are consecutive.
        num_key_value_heads: KV groups.
        groups: KV groups to keep.
        queries: query heads to keep in each of them.

    Returns:
        KV groups, (groups,), and query heads numbered within them, (groups, queries), ascending.
    """
    by_group = scores.view(num_key_value_heads, -1)
    order = by_group.sum(1).argsort(descending=True, stable=True)
    kept_groups = order[:groups].sort().values
    within = by_group[kept_groups].argsort(dim=1, descending=True, stable=True)
    return kept_groups, within[:, :queries].sort(dim=1).values


def keep_best(scores: Tensor, keep: int) -> Tensor:
    """Return the indices of the `keep` highest scores, ascending, (keep,), int64."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values


def remove_units(
    weights: LayerWeights,
    plan: LayerPlan,
    settings: LayerSettings,
    units: LayerUnits,
    *,
    bias: BiasCompensation = "none",
) -> tuple[LayerWeights, Tensor]:
    """Remove the heads and neurons of lowest score.

    Args:
        weights: dense layer.
        plan: numbers of heads and neurons to keep; 0 query heads remove the attention.
        settings: of the layer.
        units: scores of the layer.
        bias: add the mean contribution of what is removed to the output projections' biases
            (FLAP, "bias compensation"): never, where the dense layer has them, or always.

    Returns:
        The sliced layer and its rotary pairs, (num_key_value_heads, pairs), int64.
    """
    sliced, pairs = _remove_heads(weights, plan, settings, units, bias)
    neurons = keep_best(units.mlp, plan.intermediate_size)
    output = slicing.select_inputs(weights.mlp_output, neurons)
    output = _with_mean(output, weights.mlp_output, units.mlp_mean, neurons, bias)
    return replace(slicing.slice_neurons(sliced, neurons), mlp_output=output), pairs


def kept_units(
    plan: LayerPlan, settings: LayerSettings, units: LayerUnits
) -> tuple[Tensor, Tensor]:
    """Return what `remove_units` keeps of a layer with attention; arguments as there.

    Returns:
        Inputs of the attention's output projection, (inputs,), and neurons, (neurons,), both
        ascending, int64.
    """
    neurons = keep_best(units.mlp, plan.intermediate_size)
    scores = units.heads(settings.num_attention_heads)
    inputs = torch.arange(units.attention_mean.shape[0], device=neurons.device)
    if plan.num_attention_heads < settings.num_attention_heads:
        assert scores is not None  # only methods that rank heads have plans with some of them
        groups = plan.num_key_value_heads
        kept_groups, queries = keep_best_heads(
            scores, settings.num_key_value_heads, groups, plan.num_attention_heads // groups
        )
        inputs = _inputs_of(kept_groups, queries, settings, inputs)
    return inputs, neurons


def _inputs_of(groups: Tensor, queries: Tensor, settings: LayerSettings, inputs: Tensor) -> Tensor:
    """Return those of the output projection's inputs that belong to kept heads, (inputs,).

    Args:
        groups: as from `keep_best_heads`.
        queries: as from `keep_best_heads`.
        settings: of the layer.
        inputs: all inputs, (num_attention_heads · head_dim,), int64.
    """
    group_size = settings.num_attention_heads // settings.num_key_value_heads
    heads = (groups.unsqueeze(-1) * group_size + queries).flatten()
    return inputs.view(settings.num_attention_heads, -1)[heads].flatten()


def _remove_heads(
    weights: LayerWeights,
    plan: LayerPlan,
    settings: LayerSettings,
    units: LayerUnits,
    bias: BiasCompensation,
) -> tuple[LayerWeights, Tensor]:
    """Return the layer with the best heads and its rotary pairs; arguments as `remove_units`."""
    device, total = weights.key.weight.device, settings.head_dim // 2
    if plan.num_attention_heads == 0:
        return slicing.remove_attention(weights), slicing.no_pairs(device)
    groups = plan.num_key_value_heads
    pairs = torch.arange(total, device=device).expand(groups, total)
    scores = units.heads(settings.num_attention_heads)
    kept_inputs = torch.arange(weights.attention_output.weight.shape[1], device=device)
    sliced = weights
    if plan.num_attention_heads < settings.num_attention_heads:
        assert scores is not None  # only methods that rank heads have plans with some of them
        kept_groups, queries = keep_best_heads(
            scores, settings.num_key_value_heads, groups, plan.num_attention_heads // groups
        )
        # A norm across all heads divides by the energy of those that remain.
        energies = slicing.weight_energies(weights) if settings.qk_norm_across_heads else None
        sliced = slicing.slice_heads(weights, kept_groups, queries, settings, energies)
        kept_inputs = _inputs_of(kept_groups, queries, settings, kept_inputs)
    output = _with_mean(
        sliced.attention_output, weights.attention_output, units.attention_mean, kept_inputs, bias
    )
    return replace(sliced, attention_output=output), pairs


def _with_mean(
    sliced: Linear, dense: Linear, mean: Tensor, inputs: Tensor, mode: BiasCompensation
) -> Linear:
    """Return a sliced projection with the mean contribution of the removed inputs in its bias.

    Args:
        sliced: projection of the inputs that stay.
        dense: projection of all inputs.
        mean: `E[z]` of all inputs, (width,).
        inputs: those that stay, (keep,), int64.
        mode: as in `remove_units`.
    """
    if mode == "none" or (mode == "existing" and dense.bias is None):
        return sliced
    removed = mean.to(WORKING_DTYPE, copy=True)
    removed[inputs] = 0.0
    bias = dense.weight.to(WORKING_DTYPE) @ removed
    if dense.bias is not None:
        bias = bias + dense.bias.to(WORKING_DTYPE)
    return Linear(weight=sliced.weight, bias=bias.to(dense.weight.dtype))
