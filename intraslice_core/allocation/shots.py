"""Removal of heads and neurons in several shots (TransAct, arXiv 2407.05690).

Between the shots, all that remains is scored again on the smaller model. What an earlier shot has
removed stays removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.diagonal_moments import LayerActivations
from intraslice_core.methods import UnitScore
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.unit_removal import LayerUnits, kept_units, remove_units, score_units

_REMOVED = -1.0
"""Score of what an earlier shot removed: below all others."""


def plans_between(dense: ModelPlan, final: ModelPlan, shots: int) -> tuple[ModelPlan, ...]:
    """Return the plans after all shots but the last, (shots - 1).

    Each shot removes `⌊rest / remaining shots⌋` of every size, as in the authors' code.
    """
    plans, current = [], dense
    for remaining in range(shots, 1, -1):
        current = ModelPlan(
            layers=tuple(
                _next_sizes(now, goal, remaining)
                for now, goal in zip(current.layers, final.layers, strict=True)
            )
        )
        plans.append(current)
    return tuple(plans)


def _next_sizes(now: LayerPlan, goal: LayerPlan, remaining: int) -> LayerPlan:
    """Return the sizes of a layer after the first of the remaining shots."""

    def after(size: int, last: int) -> int:
        return size - (size - last) // remaining

    groups = after(now.num_key_value_heads, goal.num_key_value_heads)
    queries = after(
        now.num_attention_heads // now.num_key_value_heads,
        goal.num_attention_heads // goal.num_key_value_heads,
    )
    return now.model_copy(
        update={
            "num_attention_heads": groups * queries,
            "num_key_value_heads": groups,
            "intermediate_size": after(now.intermediate_size, goal.intermediate_size),
        }
    )


@dataclass(frozen=True, kw_only=True)
class CutModel:
    """The model after a shot."""

    layers: DenseLayers
    """The dense model."""
    plan: ModelPlan
    """Numbers of heads and neurons that are left."""
    units: tuple[LayerUnits, ...]
    """Scores of the dense model's inputs that the shot removed by."""

    def cut(self, layer: int, dense: LayerWeights) -> LayerWeights:
        """Return a layer as the shot leaves it."""
        settings, units = self.layers.settings(layer), self._units(layer)
        weights, _ = remove_units(dense, self.plan.layers[layer], settings, units)
        return weights

    def rescored(self, layer: int, score: UnitScore, activations: LayerActivations) -> LayerUnits:
        """Return the scores of a dense layer's inputs by moments of those that are left.

        Args:
            layer: number of the layer.
            score: as in `score_units`.
            activations: of the layer as `cut` returns it.
        """
        settings, units = self.layers.settings(layer), self._units(layer)
        weights = self.cut(layer, self.layers.weights(layer))
        own = score_units(score, activations, weights)
        inputs, neurons = kept_units(self.plan.layers[layer], settings, units)
        assert own.attention is not None
        assert units.attention is not None
        return replace(
            units,
            attention=_scattered(own.attention, inputs, units.attention),
            mlp=_scattered(own.mlp, neurons, units.mlp),
        )

    def _units(self, layer: int) -> LayerUnits:
        return self.units[layer].to(self.layers.device)


def _scattered(scores: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Return scores at their places, `_REMOVED` elsewhere; shape of `like`."""
    return torch.full_like(like, _REMOVED).scatter(0, places, scores.to(like))
