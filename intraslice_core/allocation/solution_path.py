"""Allocation of SPP (arXiv 2501.03289): one order over all units of all layers; no torch.

A unit is a rotary pair or a value dimension, one of every KV head together, or a neuron. Each
dimension of a layer has an order of its units with a score for each removal. Rounding steps are
removed in the order of their mean scores, over all layers, until the budget is met. The order does
not depend on the budget: whatever a small model keeps, every larger one keeps, too. Where a step of
attention leaves more of the budget unused than the tolerance, which happens in small models, the
neurons removed last return.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from intraslice_core.allocation.budget import pair_step
from intraslice_core.allocation.curves import Losses, rounding_steps
from intraslice_core.allocation.uniform import require_budget
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint

PathDimension = Literal["pairs", "value", "width"]

_SLACK = 1e-9
"""Tolerance of the module cap, so that rounding does not exclude a size that meets it exactly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerPath:
    """Scores of one layer's removals, first removed first; a lower score is removed earlier."""

    pairs: Losses
    """Removals of a rotary pair from every KV head, (rotary_pairs,)."""
    values: Losses
    """Removals of a value dimension from every KV head, (head_dim,)."""
    neurons: Losses
    """(intermediate_size,)."""

    def scores(self, dimension: PathDimension) -> Losses:
        """Return the scores of one dimension."""
        return {"pairs": self.pairs, "value": self.values, "width": self.neurons}[dimension]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Removal of one rounding step from a dimension of a layer."""

    layer: int
    dimension: PathDimension
    before: int
    """Size before the removal."""
    after: int
    """Size after it."""
    score: float


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Smallest sizes that the module cap allows, and the target's constraint."""

    geometry: ModelGeometry
    module_cap: float
    constraint: ShapeConstraint

    def allow(self, layer: LayerPlan) -> bool:
        """Return whether a layer is within the limits."""
        keep, dense = 1.0 - self.module_cap - _SLACK, self.geometry.dense_layer()
        if self.constraint.value_at_most_qk and layer.v_head_dim > layer.qk_head_dim:
            return False
        attention = layer.attention_parameters(self.geometry)
        whole = dense.attention_parameters(self.geometry)
        return attention >= keep * whole and (
            layer.intermediate_size >= keep * dense.intermediate_size
        )


def removal_order(
    geometry: ModelGeometry,
    path: Sequence[LayerPath],
    *,
    round_to: int,
    module_cap: float,
    constraint: ShapeConstraint,
) -> tuple[Removal, ...]:
    """Return all removals that cap and constraint allow, in their order.

    Value dimensions that would be wider than queries and keys go just before the pairs.

    Args:
        geometry: of the dense model.
        path: scores of all layers.
        round_to: rounding step.
        module_cap: largest fraction of a module that may be removed.
        constraint: of the target.
    """
    limits = _Limits(geometry=geometry, module_cap=module_cap, constraint=constraint)
    removals = [
        list(_removals(layer, number, round_to, constraint)) for number, layer in enumerate(path)
    ]
    current = [geometry.dense_layer()] * len(path)
    order: list[Removal] = []
    ranked = sorted((each for own in removals for each in own), key=lambda removal: removal.score)
    for removal in ranked:
        layer = current[removal.layer]
        if removal.after >= _size(layer, removal.dimension):
            continue  # a value dimension that has gone before its turn
        together = [removal]
        if removal.dimension == "pairs" and constraint.value_at_most_qk:
            together = [*_too_wide(removals[removal.layer], layer, removal.after), removal]
        smaller = layer
        for each in together:
            smaller = _resized(smaller, each.dimension, each.after)
        if limits.allow(smaller):
            order += together
            current[removal.layer] = smaller
    return tuple(order)


def solution_path_plan(
    geometry: ModelGeometry,
    path: Sequence[LayerPath],
    budget: int,
    *,
    round_to: int,
    module_cap: float,
    constraint: ShapeConstraint,
) -> ModelPlan:
    """Return the plan of the first removals of the order that meet the budget.

    Args:
        geometry: of the dense model.
        path: scores of all layers.
        budget: maximum compressible parameters of all layers.
        round_to: rounding step.
        module_cap: largest fraction of a module that may be removed.
        constraint: of the target.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    order = removal_order(
        geometry, path, round_to=round_to, module_cap=module_cap, constraint=constraint
    )
    layers = [geometry.dense_layer()] * len(path)
    costs = _unit_parameters(geometry)
    parameters = ModelPlan(layers=tuple(layers)).parameters(geometry)
    applied: list[Removal] = []
    for removal in order:
        if parameters <= budget:
            break
        layers[removal.layer] = _resized(layers[removal.layer], removal.dimension, removal.after)
        parameters -= costs[removal.dimension] * (removal.before - removal.after)
        applied.append(removal)
    if parameters > budget:
        raise BudgetOutOfReachError(
            f"the budget keeps {budget:,} compressible parameters, but {parameters:,} cannot be "
            "removed",
            field="compression.module_cap",
            hint="remove less, or allow a larger module_cap or a smaller round_to",
        )
    _return_neurons(layers, applied, budget - parameters, costs["width"], constraint, budget)
    plan = ModelPlan(layers=tuple(layers))
    require_budget(plan, geometry, budget, constraint.tolerance)
    return plan


def _return_neurons(
    layers: list[LayerPlan],
    applied: Sequence[Removal],
    left: int,
    cost: int,
    constraint: ShapeConstraint,
    budget: int,
) -> None:
    """Return the neurons removed last, in place, while more than the tolerance is left.

    Args:
        layers: shapes after all removals.
        applied: removals in their order.
        left: parameters of the budget that are not used.
        cost: parameters of a neuron.
        constraint: of the target.
        budget: maximum compressible parameters.
    """
    for removal in reversed(applied):
        if left <= constraint.tolerance * budget:
            return
        parameters = cost * (removal.before - removal.after)
        own = layers[removal.layer]
        is_last = removal.dimension == "width" and own.intermediate_size == removal.after
        if is_last and parameters <= left:
            layers[removal.layer] = _resized(own, "width", removal.before)
            left -= parameters


def _removals(
    path: LayerPath, layer: int, round_to: int, constraint: ShapeConstraint
) -> Iterator[Removal]:
    """Yield a layer's removals by dimension; scores never fall within one."""
    dimensions: tuple[tuple[PathDimension, int], ...] = (
        ("pairs", pair_step(round_to)),
        ("value", round_to),
        ("width", round_to),
    )
    for dimension, step in dimensions:
        scores = path.scores(dimension)
        multiple = constraint.multiples.get(dimension, 1)
        sizes = [
            size
            for size in rounding_steps(len(scores), step).tolist()
            if size % multiple == 0 or size == len(scores)
        ][::-1]
        between = list(pairwise(sizes))
        means = [
            float(scores[len(scores) - before : len(scores) - after].mean())
            for before, after in between
        ]
        units = [before - after for before, after in between]
        for (before, after), score in zip(between, _rising(means, units), strict=True):
            yield Removal(layer=layer, dimension=dimension, before=before, after=after, score=score)


def _rising(scores: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Return the nearest scores that never fall: neighbours that fall get their common mean."""
    pools: list[tuple[float, int, int]] = []  # mean, weight and number of steps
    for score, weight in zip(scores, weights, strict=True):
        pool = (score, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, total, steps = pools.pop()
            both = total + pool[1]
            pool = ((mean * total + pool[0] * pool[1]) / both, both, steps + pool[2])
        pools.append(pool)
    return [mean for mean, _, steps in pools for _ in range(steps)]


def _too_wide(removals: Sequence[Removal], layer: LayerPlan, pairs: int) -> list[Removal]:
    """Return the removals of value dimensions until they are no wider than the pairs."""
    values = [
        removal
        for removal in removals
        if removal.dimension == "value" and removal.after < layer.v_head_dim
    ]
    return [removal for removal in values if removal.before > 2 * pairs]


def _size(layer: LayerPlan, dimension: PathDimension) -> int:
    """Return the size of a dimension."""
    sizes = {
        "pairs": layer.qk_pairs,
        "value": layer.v_head_dim,
        "width": layer.intermediate_size,
    }
    return sizes[dimension]


def _resized(layer: LayerPlan, dimension: PathDimension, size: int) -> LayerPlan:
    """Return the layer with another size of a dimension."""
    fields = {"pairs": "qk_pairs", "value": "v_head_dim", "width": "intermediate_size"}
    return layer.model_copy(update={fields[dimension]: size})


def _unit_parameters(geometry: ModelGeometry) -> dict[PathDimension, int]:
    """Return the parameters of a unit of each dimension."""
    heads = geometry.num_attention_heads + geometry.num_key_value_heads
    return {
        "pairs": 2 * geometry.hidden_size * heads,
        "value": geometry.hidden_size * heads,
        "width": geometry.mlp_projections * geometry.hidden_size,
    }


def measured_path(
    geometry: ModelGeometry, pairs: Losses, values: Losses, widths: Losses
) -> LayerPath:
    """Return the path of a layer whose removals cost measured losses: those per parameter.

    Args:
        geometry: of the dense model.
        pairs: loss by the number of pairs kept, (rotary_pairs + 1,).
        values: loss by the number of value dimensions kept, (head_dim + 1,).
        widths: loss by the number of neurons kept, (intermediate_size + 1,).
    """
    costs = _unit_parameters(geometry)

    def per_parameter(losses: Losses, dimension: PathDimension) -> Losses:
        differences: Losses = -np.diff(np.asarray(losses, dtype=np.float64))
        return differences[::-1] / costs[dimension]

    return LayerPath(
        pairs=per_parameter(pairs, "pairs"),
        values=per_parameter(values, "value"),
        neurons=per_parameter(widths, "width"),
    )
