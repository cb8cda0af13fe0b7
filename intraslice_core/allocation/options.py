"""From curves to a table: for each module every size it may have, with parameters and loss.

Three curves of an attention module make a grid. Of all its points with equally many parameters
only the cheapest can be chosen, and of those only the ones that no smaller point undercuts; this
keeps the table small. Layers that must have equal shapes are one module whose losses are summed.
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
"""An option for each module, (modules,)."""

_SLACK = 1e-9
"""Of the cap: a size that meets it exactly is not refused for the last bit of a float."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Sizes that one kind of module may have, by ascending parameters; -1 indexes no curve."""

    parameters: Sizes
    """Of one module, (points,)."""
    curves: NDArray[np.intp]
    """Index into each of its curves, (curves, points): pairs, values and heads, or widths."""

    def where(self, kept: NDArray[np.bool_]) -> Points:
        """A part of the points."""
        return replace(self, parameters=self.parameters[kept], curves=self.curves[:, kept])

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Where the points with the next number of parameters begin."""
        return np.unique(self.parameters, return_index=True)[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Modules:
    """All modules of one kind: a row for each, or one for all where they must be alike."""

    points: Points
    losses: Losses
    """(rows, points); infinite where a layer must not have the point."""
    layers_a_row: int

    @cached_property
    def table(self) -> tuple[Sizes, Losses]:
        """Parameters, (options,), and losses, (rows, options), infinite where undercut."""
        starts = self.points.starts
        losses = np.minimum.reduceat(self.losses, starts, axis=1)
        losses[losses > np.minimum.accumulate(losses, axis=1)] = np.inf
        return self.points.parameters[starts] * self.layers_a_row, losses

    def index(self, layer: int, chosen: list[int]) -> NDArray[np.intp]:
        """Where a layer's curves have the cheapest point of the option chosen, (curves,)."""
        row = layer if len(self.losses) > 1 else 0
        begin, end = (*self.points.starts, self.points.parameters.size)[chosen[row] :][:2]
        return self.points.curves[:, begin + np.argmin(self.losses[row, begin:end])]


@dataclass(frozen=True, kw_only=True, eq=False)
class OptionTable:
    """Every module with its options; rows are padded with infinite losses."""

    parameters: Sizes
    """(modules, options)."""
    losses: Losses
    """(modules, options)."""
    attention: Modules
    mlp: Modules
    curves: ModelCurves

    def plan(self, choice: Choice) -> ScoredPlan:
        """The shapes that a choice means, with the price of each layer."""
        rows = len(self.attention.losses)
        attention, mlp = choice[:rows].tolist(), choice[rows:].tolist()
        layers, prices = [], []
        for layer, curves in enumerate(self.curves.layers):
            attention_index = self.attention.index(layer, attention)
            (width,) = self.mlp.index(layer, mlp)
            layers.append(_layer_plan(curves, attention_index, width))
            prices.append(
                LayerLosses(
                    attention=float(_attention_losses(curves.attention, attention_index)),
                    mlp=float(curves.widths.losses[width]),
                )
            )
        return ScoredPlan(plan=ModelPlan(layers=tuple(layers)), layer_losses=tuple(prices))


def option_tables(
    curves: ModelCurves, constraint: ShapeConstraint, module_cap: float
) -> Iterator[OptionTable]:
    """All tables that one choice may be made from.

    There is one, unless layers must be alike in some dimensions of attention and may differ in
    others: then there is one for each value of the shared dimensions.

    Args:
        curves: of all layers.
        constraint: what the target demands.
        module_cap: fraction of one module that is removed at most, unless it is removed whole.
    """
    points = _attention_points(curves, constraint, module_cap)
    mlp = _mlp_modules(curves, constraint, module_cap)
    shared = constraint.same_across_layers & ATTENTION_DIMENSIONS
    summed = shared == ATTENTION_DIMENSIONS
    for part in [points] if summed or not shared else _with_equal(points, shared):
        yield _table(curves, _attention_modules(curves, constraint, part, summed), mlp)


def _table(curves: ModelCurves, attention: Modules, mlp: Modules) -> OptionTable:
    tables = [attention.table, mlp.table]
    most = max(losses.shape[1] for _, losses in tables)
    parameters, losses = [], []
    for sizes, prices in tables:
        padding = most - len(sizes)
        row = np.pad(sizes, (0, padding))
        parameters.append(np.broadcast_to(row, (len(prices), most)))
        losses.append(np.pad(prices, ((0, 0), (0, padding)), constant_values=np.inf))
    return OptionTable(
        parameters=np.concatenate(parameters),
        losses=np.concatenate(losses),
        attention=attention,
        mlp=mlp,
        curves=curves,
    )


def _allowed(sizes: Sizes, dimension: Dimension, constraint: ShapeConstraint) -> list[int]:
    """Indices of sizes that are something, and a multiple or the dense size."""
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
    """The grid of pairs, value dims and heads, as far as the constraint and the cap allow it."""
    geometry, candidate = curves.geometry, curves.layers[0].attention
    axes = (
        _allowed(candidate.pairs.sizes, "pairs", constraint),
        _allowed(candidate.values.sizes, "value", constraint),
        _allowed_heads(curves, constraint),
    )
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    qk, value = 2 * candidate.pairs.sizes[grid[0]], candidate.values.sizes[grid[1]]
    heads = np.array([option.query_heads + option.groups for option in candidate.heads])
    parameters = geometry.hidden_size * heads[grid[2]] * (qk + value)
    dense = geometry.dense_layer().attention_parameters(geometry)
    kept = parameters >= (1.0 - module_cap - _SLACK) * dense
    if constraint.qk_equals_value:
        kept &= qk == value
    if constraint.value_at_most_qk:
        kept &= value <= qk
    return _sorted(grid[:, kept], parameters[kept], _removals(candidate, constraint))


def _allowed_heads(curves: ModelCurves, constraint: ShapeConstraint) -> list[int]:
    multiple = constraint.multiples.get("heads", 1)
    dense = curves.geometry.num_attention_heads
    return [
        index
        for index, option in enumerate(curves.layers[0].attention.heads)
        if not option.removed
        and (option.query_heads % multiple == 0 or option.query_heads == dense)
    ]


def _removals(candidate: AttentionCurves, constraint: ShapeConstraint) -> NDArray[np.intp]:
    """Points that leave nothing of the module, (3, removals)."""
    found = [index for index, option in enumerate(candidate.heads) if option.removed]
    if not constraint.allows_removal("attention"):
        found = []
    return np.array([[-1] * len(found), [-1] * len(found), found], dtype=np.intp)


def _sorted(grid: NDArray[np.intp], parameters: Sizes, removals: NDArray[np.intp]) -> Points:
    everything = np.concatenate([removals, grid], axis=1)
    sizes = np.concatenate([np.zeros(removals.shape[1], dtype=np.int64), parameters])
    order = np.argsort(sizes, kind="stable")
    return Points(parameters=sizes[order], curves=everything[:, order])


def _with_equal(points: Points, shared: frozenset[Dimension]) -> Iterator[Points]:
    """The points by the value of the shared dimensions; a removed module has every value."""
    places = ("pairs", "value", "heads")
    rows = [points.curves[place] for place, name in enumerate(places) if name in shared]
    removed = points.parameters == 0
    values = np.unique(np.stack(rows)[:, ~removed], axis=1)
    for value in values.T:
        same = np.all([row == one for row, one in zip(rows, value, strict=True)], axis=0)
        yield points.where(same | removed)


def _layer_plan(curves: LayerCurves, attention: NDArray[np.intp], width: int) -> LayerPlan:
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
    """Where the index, (3, …), points to; a removed module costs what its heads do, no more."""
    pair, value, head = index
    heads = np.array([option.loss for option in curves.heads])
    shares = np.array([option.share for option in curves.heads])
    within = np.append(curves.pairs.losses, 0.0)[pair] + np.append(curves.values.losses, 0.0)[value]
    losses: Losses = shares[head] * within + heads[head]
    return losses


def _attention_modules(
    curves: ModelCurves, constraint: ShapeConstraint, points: Points, summed: bool
) -> Modules:
    losses = np.stack(
        [_attention_losses(layer.attention, points.curves) for layer in curves.layers]
    )
    for layer in constraint.attention_stays_in & set(range(len(losses))):
        losses[layer, points.parameters == 0] = np.inf
    return _modules(points, losses, summed)


def _mlp_modules(curves: ModelCurves, constraint: ShapeConstraint, module_cap: float) -> Modules:
    geometry, sizes = curves.geometry, curves.layers[0].widths.sizes
    allowed = _allowed(sizes, "width", constraint)
    least = (1.0 - module_cap - _SLACK) * geometry.intermediate_size
    allowed = [index for index in allowed if sizes[index] >= least]
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
    layers = 1
    if summed:
        layers, losses = len(losses), losses.sum(axis=0, keepdims=True)
    return Modules(points=points, losses=losses, layers_a_row=layers)
