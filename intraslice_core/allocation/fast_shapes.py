"""Soft preference for shapes that matrix kernels read fast (docs/method.md, section 4); no torch.

Kernels read rows in blocks of 32 to 128 bytes: a register of AVX2 or AVX-512, a row of an AMX tile,
a cache line, an operand of tensor cores. A row that ends within a block wastes the rest of it, and
all rows after it begin within a block. So rows of the MLP's inner activations, and of the down
projection that reads them, should be whole blocks. Head dimensions need no preference: multiples of
8, the default rounding step, suit all fused attention kernels, and 4 KV heads of them are whole
blocks of 64 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.equal_layers import plain_plan
from intraslice_core.config import CompressionSettings
from intraslice_core.errors import ConfigurationError
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.plan import ModelGeometry, ModelPlan, ShapeConstraint
from intraslice_core.reports.fast_shapes import FastShapesReport

if TYPE_CHECKING:
    from intraslice_core.allocation.curves import ScoredPlan

BLOCK_BYTES = (128, 64, 32)
"""Block sizes that are tried, the largest first."""
MAX_EXTRA_LOSS = 0.01
"""Largest predicted loss of the preference in nats per token, about 1 % of the perplexity."""
MAX_UNUSED = 0.001
"""Largest fraction of the budget that uniform shapes may leave unused for the preference."""
_MLP_STEPS = 32
"""Least number of multiples in a dense MLP; narrower models are left alone."""


@dataclass(frozen=True, kw_only=True)
class FastShapes:
    """Shapes whose MLPs have inner activations with rows of whole blocks."""

    multiple: int
    """Number that MLP widths are multiples of, unless dense or 0."""
    constraint: ShapeConstraint
    """Constraint of the target with this multiple in addition."""


def fast_shapes(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    item_bytes: int,
    constraint: ShapeConstraint,
) -> Iterator[FastShapes]:
    """Yield the shapes to prefer, the coarsest first; nothing for models too narrow for them.

    Args:
        settings: of the compression; the rounding step divides all yielded multiples.
        geometry: of the dense model.
        item_bytes: bytes of a stored weight.
        constraint: of the target.
    """
    step = resolve_round_to(settings, geometry)
    blocks = BLOCK_BYTES if settings.prefer_fast_shapes else ()
    for block in blocks:
        multiple = math.lcm(block // item_bytes, step)
        if multiple > step and geometry.intermediate_size >= _MLP_STEPS * multiple:
            joint = math.lcm(multiple, constraint.multiples.get("width", 1))
            multiples = {**constraint.multiples, "width": joint}
            allowed = replace(constraint, multiples=multiples)
            yield FastShapes(multiple=multiple, constraint=allowed)


def prefer_fast_shapes(
    allocate: Callable[[ShapeConstraint], ScoredPlan],
    constraint: ShapeConstraint,
    candidates: Iterator[FastShapes],
) -> ScoredPlan:
    """Return the plan of the coarsest shapes that cost little, or the plan without preference.

    Every plan is within the budget, because the preference only takes options away.

    Args:
        allocate: returns the plan of least loss for a constraint.
        constraint: of the target.
        candidates: shapes to prefer, the coarsest first.

    Raises:
        ConfigurationError: if the plan without preference misses the budget.
    """
    plain = allocate(constraint)
    for candidate in candidates:
        try:
            scored = allocate(candidate.constraint)
        except ConfigurationError:  # the multiples leave too much of the budget unused
            continue
        extra = scored.predicted_loss - plain.predicted_loss
        if extra <= MAX_EXTRA_LOSS:
            return replace(scored, extra_loss=extra)
    return plain


def equal_plan(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    ratio: float,
    item_bytes: int,
    constraint: ShapeConstraint,
) -> ModelPlan:
    """Return the plan of equal layers, with MLP widths of whole blocks if they use the budget.

    Its attention is that of `plain_plan`. Widths are rounded down, so that it is not larger than
    the budget or the plan without preference.

    Raises:
        ConfigurationError: if the plan without preference misses the budget.
    """
    step = resolve_round_to(settings, geometry)
    plain = plain_plan(settings, geometry, ratio, step, constraint)
    return with_fast_widths(plain, settings, geometry, ratio, item_bytes, constraint)


def with_fast_widths(
    plain: ModelPlan,
    settings: CompressionSettings,
    geometry: ModelGeometry,
    ratio: float,
    item_bytes: int,
    constraint: ShapeConstraint,
) -> ModelPlan:
    """Return a plan of equal MLP widths with widths of whole blocks, as `equal_plan` does.

    Plans without whole layers stay: their MLPs are dense but for one. So do those with a sliced
    residual stream, whose MLPs are all dense, and those of methods that cut what modules read and
    write of the stream, whose rows have other lengths, too.
    """
    dense_widths = resolve_allocator(settings) in ("whole_layers", "residual_width")
    others = dense_widths or METHODS[settings.method].residual_parts
    if ratio == 0.0 or geometry.input_layers or others:
        return plain
    budget = math.floor((1.0 - ratio) * geometry.dense_plan().parameters(geometry))
    limit = max(budget, plain.parameters(geometry))
    for candidate in fast_shapes(settings, geometry, item_bytes, constraint):
        plan = _with_widths(plain, geometry, candidate, limit)
        unused = limit - plan.parameters(geometry)
        if unused <= MAX_UNUSED * limit:
            return plan
    return plain


def _with_widths(
    plan: ModelPlan, geometry: ModelGeometry, candidate: FastShapes, limit: int
) -> ModelPlan:
    """Return the plan with MLP widths that are the candidate's multiples and within the limit."""
    layers = len(plan.layers)
    attention = sum(layer.attention_parameters(geometry) for layer in plan.layers)
    per_step = geometry.mlp_projections * geometry.hidden_size * candidate.multiple
    steps = (limit - attention) // per_step
    if "width" in candidate.constraint.same_across_layers:
        steps -= steps % layers
    bounds = [steps * index // layers for index in range(layers + 1)]
    widths = [
        min((after - before) * candidate.multiple, geometry.intermediate_size)
        for before, after in pairwise(bounds)
    ]
    return ModelPlan(
        layers=tuple(
            layer.model_copy(update={"intermediate_size": width})
            for layer, width in zip(plan.layers, widths, strict=True)
        )
    )


def fast_shapes_report(
    plan: ModelPlan,
    geometry: ModelGeometry,
    candidates: Iterator[FastShapes],
    extra_loss: float | None,
) -> FastShapesReport | None:
    """Return the multiple that a plan's MLP widths have; None if there was nothing to prefer.

    Args:
        plan: chosen shapes.
        geometry: of the dense model.
        candidates: shapes that were to prefer, the coarsest first.
        extra_loss: predicted loss of the preference; None if unknown.
    """
    multiples = [candidate.multiple for candidate in candidates]
    widths = [layer.intermediate_size for layer in plan.result_layers]
    cut = [width for width in widths if width != geometry.intermediate_size]
    if not multiples or not cut:
        return None
    applied = next((size for size in multiples if all(width % size == 0 for width in cut)), None)
    return FastShapesReport(multiple=applied, extra_loss=None if applied is None else extra_loss)
