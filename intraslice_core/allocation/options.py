"""Option tables: for each module every allowed size, with parameters and predicted loss.

The three curves of an attention module span a grid. Of its points with equally many parameters only
the one of least loss is an option, and only if no smaller point has less loss; this keeps the table
small. Layers that must have equal shapes form one module whose losses are summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from intraslice_core.allocation.curves import (
    AttentionCurves,
    LayerCurves,
    LayerLosses,
    Losses,
    ModelCurves,
    ScoredPlan,
    Sizes,
)
from intraslice_core.plan import (
    ATTENTION_DIMENSIONS,
    Dimension,
    LayerPlan,
    ModelPlan,
    ShapeConstraint,
)

Choice = NDArray[np.intp]
"""Index of the chosen option of each module, (modules,)."""

_SLACK = 1e-9
"""Tolerance of the module cap, so that rounding does not exclude a size that meets it exactly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Sizes allowed for attention or MLP modules, by ascending number of parameters."""

    parameters: Sizes
    """Parameters of one module, (points,)."""
    curves: NDArray[np.intp]
    """Index into each curve, (curves, points): pairs, values and heads, or widths; -1 for none."""

    def where(self, mask: NDArray[np.bool_]) -> Points:
        """Return the points where `mask` is true, (points,)."""
        return replace(self, parameters=self.parameters[mask], curves=self.curves[:, mask])

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Return the first point of each distinct number of parameters, (options,)."""
        return np.unique(self.parameters, return_index=True)[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Modules:
    """All attention or all MLP modules: a row each, or a single row if all have equal shapes."""

    points: Points
    losses: Losses
    """Predicted losses, (rows, points); infinite where a layer must not have the point."""
    layers_per_row: int

    @cached_property
    def table(self) -> tuple[Sizes, Losses]:
        """Return parameters, (options,), and losses, (rows, options).

        A loss is infinite where a smaller option has less.
        """
        starts = self.points.starts
        losses = np.minimum.reduceat(self.losses, starts, axis=1)
        losses[losses > np.minimum.accumulate(losses, axis=1)] = np.inf
        return self.points.parameters[starts] * self.layers_per_row, losses

    def index(self, layer: int, choice: list[int]) -> NDArray[np.intp]:
        """Return the index into a layer's curves of the chosen option's best point, (curves,)."""
        row = layer if len(self.losses) > 1 else 0
        begin, end = (*self.points.starts, self.points.parameters.size)[choice[row] :][:2]
        return self.points.curves[:, begin + np.argmin(self.losses[row, begin:end])]


@dataclass(frozen=True, kw_only=True, eq=False)
class OptionTable:
    """Options of every module; rows are padded with infinite losses."""

    parameters: Sizes
    """Numbers of parameters, (modules, options)."""
    losses: Losses
    """Predicted losses, (modules, options)."""
    attention: Modules
    mlp: Modules
    curves: ModelCurves

    def plan(self, choice: Choice) -> ScoredPlan:
        """Return the plan of a choice with the predicted losses of each layer."""
        rows = len(self.attention.losses)
        attention, mlp = choice[:rows].tolist(), choice[rows:].tolist()
        layers, layer_losses = [], []
        for layer, curves in enumerate(self.curves.layers):
            attention_index = self.attention.index(layer, attention)
            (width,) = self.mlp.index(layer, mlp)
            layers.append(_layer_plan(curves, attention_index, width))
            layer_losses.append(
                LayerLosses(
                    attention=float(_attention_losses(curves.attention, attention_index)),
                    mlp=float(curves.widths.losses[width]),
                )
            )
        return ScoredPlan(plan=ModelPlan(layers=tuple(layers)), layer_losses=tuple(layer_losses))


def option_tables(
    curves: ModelCurves, constraint: ShapeConstraint, module_cap: float
) -> Iterator[OptionTable]:
    """Yield all tables that a choice may be made from.

    There is a single table, unless layers share some but not all dimensions of attention: then
    there is one for each value of the shared dimensions.

    Args:
        curves: of all layers.
        constraint: of the target.
        module_cap: largest fraction of a module that may be removed, unless it is removed whole.
    """
    points = _attention_points(curves, constraint, module_cap)
    mlp = _mlp_modules(curves, constraint, module_cap)
    shared = constraint.same_across_layers & ATTENTION_DIMENSIONS
    summed = shared == ATTENTION_DIMENSIONS
    for part in [points] if summed or not shared else _with_equal(points, shared):
        yield _table(curves, _attention_modules(curves, constraint, part, summed), mlp)


def _table(curves: ModelCurves, attention: Modules, mlp: Modules) -> OptionTable:
    """Return the table of both kinds of modules, padded to equal numbers of options."""
    tables = [attention.table, mlp.table]
    columns = max(losses.shape[1] for _, losses in tables)
    parameters, losses = [], []
    for sizes, option_losses in tables:
        padding = columns - len(sizes)
        row = np.pad(sizes, (0, padding))
        parameters.append(np.broadcast_to(row, (len(option_losses), columns)))
        losses.append(np.pad(option_losses, ((0, 0), (0, padding)), constant_values=np.inf))
    return OptionTable(
        parameters=np.concatenate(parameters),
        losses=np.concatenate(losses),
        attention=attention,
        mlp=mlp,
        curves=curves,
    )


def _allowed(sizes: Sizes, dimension: Dimension, constraint: ShapeConstraint) -> list[int]:
    """Return indices of positive sizes that are a required multiple or the dense size."""
    multiple = constraint.multiples.get(dimension, 1)
    last = len(sizes) - 1
    return [
        index
        for index, size in enumerate(sizes.tolist())
        if size > 0 and (size % multiple == 0 or index == last)
    ]


def _attention_points(
    curves: ModelCurves, constraint: ShapeConstraint, module_cap: float
) -> Points:
    """Return the grid of pairs, value dimensions and heads that constraint and cap allow."""
    geometry, attention = curves.geometry, curves.layers[0].attention
    axes = (
        _allowed(attention.pairs.sizes, "pairs", constraint),
        _allowed(attention.values.sizes, "value", constraint),
        _allowed_heads(curves, constraint),
    )
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    qk, value = 2 * attention.pairs.sizes[grid[0]], attention.values.sizes[grid[1]]
    heads = np.array([option.query_heads + option.groups for option in attention.heads])
    parameters = geometry.hidden_size * heads[grid[2]] * (qk + value)
    dense = geometry.dense_layer().attention_parameters(geometry)
    allowed = parameters >= (1.0 - module_cap - _SLACK) * dense
    if constraint.qk_equals_value:
        allowed &= qk == value
    if constraint.value_at_most_qk:
        allowed &= value <= qk
    return _sorted(grid[:, allowed], parameters[allowed], _removals(attention, constraint))


def _allowed_heads(curves: ModelCurves, constraint: ShapeConstraint) -> list[int]:
    """Return indices of head options that keep heads in an allowed number."""
    multiple = constraint.multiples.get("heads", 1)
    dense = curves.geometry.num_attention_heads
    whole = curves.geometry.hidden_size if constraint.heads_divide_hidden_size else 0

    def allowed(heads: int) -> bool:
        return heads == dense or (heads % multiple == 0 and whole % heads == 0)

    return [
        index
        for index, option in enumerate(curves.layers[0].attention.heads)
        if not option.removed and allowed(option.query_heads)
    ]


def _removals(attention: AttentionCurves, constraint: ShapeConstraint) -> NDArray[np.intp]:
    """Return the points that remove the module, (3, removals)."""
    indices = [index for index, option in enumerate(attention.heads) if option.removed]
    if not constraint.allows_removal("attention"):
        indices = []
    return np.array([[-1] * len(indices), [-1] * len(indices), indices], dtype=np.intp)


def _sorted(grid: NDArray[np.intp], parameters: Sizes, removals: NDArray[np.intp]) -> Points:
    """Return removals and grid points by ascending number of parameters."""
    indices = np.concatenate([removals, grid], axis=1)
    sizes = np.concatenate([np.zeros(removals.shape[1], dtype=np.int64), parameters])
    order = np.argsort(sizes, kind="stable")
    return Points(parameters=sizes[order], curves=indices[:, order])


def _with_equal(points: Points, shared: frozenset[Dimension]) -> Iterator[Points]:
    """Yield the points of each value of the shared dimensions; removals belong to every value."""
    dimensions = ("pairs", "value", "heads")
    rows = [points.curves[row] for row, name in enumerate(dimensions) if name in shared]
    removed = points.parameters == 0
    combinations = np.unique(np.stack(rows)[:, ~removed], axis=1)
    for combination in combinations.T:
        equal = np.all([row == index for row, index in zip(rows, combination, strict=True)], axis=0)
        yield points.where(equal | removed)


def _layer_plan(curves: LayerCurves, attention: NDArray[np.intp], width: int) -> LayerPlan:
    """Return the layer's plan from the indices into its curves."""
    pair, value, head = attention.tolist()
    heads, sizes = curves.attention.heads[head], curves.attention
    return LayerPlan(
        num_attention_heads=heads.query_heads,
        num_key_value_heads=heads.groups,
        qk_pairs=0 if heads.removed else int(sizes.pairs.sizes[pair]),
        v_head_dim=0 if heads.removed else int(sizes.values.sizes[value]),
        intermediate_size=int(curves.widths.sizes[width]),
    )


def _attention_losses(curves: AttentionCurves, index: NDArray[np.intp]) -> Losses:
    """Return the attention's losses at indices (3, …) into its curves, (…).

    A removed module has the loss of its head option only.
    """
    pair, value, head = index
    heads = np.array([option.loss for option in curves.heads])
    shares = np.array([option.share for option in curves.heads])
    within = np.append(curves.pairs.losses, 0.0)[pair] + np.append(curves.values.losses, 0.0)[value]
    losses: Losses = shares[head] * within + heads[head]
    return losses


def _attention_modules(
    curves: ModelCurves, constraint: ShapeConstraint, points: Points, summed: bool
) -> Modules:
    """Return the attention modules; `summed` makes them one."""
    losses = np.stack(
        [_attention_losses(layer.attention, points.curves) for layer in curves.layers]
    )
    for layer in constraint.attention_stays_in & set(range(len(losses))):
        losses[layer, points.parameters == 0] = np.inf
    return _modules(points, losses, summed)


def _mlp_modules(curves: ModelCurves, constraint: ShapeConstraint, module_cap: float) -> Modules:
    """Return the MLP modules with the widths that constraint and cap allow."""
    geometry, sizes = curves.geometry, curves.layers[0].widths.sizes
    allowed = _allowed(sizes, "width", constraint)
    minimum = (1.0 - module_cap - _SLACK) * geometry.intermediate_size
    allowed = [index for index in allowed if sizes[index] >= minimum]
    if sizes[0] == 0 and constraint.allows_removal("mlp"):
        allowed = [0, *allowed]
    index = np.array(allowed, dtype=np.intp)
    points = Points(
        parameters=geometry.mlp_projections * geometry.hidden_size * sizes[index],
        curves=index[None],
    )
    losses = np.stack([layer.widths.losses[index] for layer in curves.layers])
    return _modules(points, losses, "width" in constraint.same_across_layers)


def _modules(points: Points, losses: Losses, summed: bool) -> Modules:
    """Return modules with the losses of each layer, or with `summed` their sum."""
    layers = 1
    if summed:
        layers, losses = len(losses), losses.sum(axis=0, keepdims=True)
    return Modules(points=points, losses=losses, layers_per_row=layers)
