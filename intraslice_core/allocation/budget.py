"""Budget of compressible parameters from a ratio, a parameter count or bytes; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.allocation.residual_width import require_foldable_norms
from intraslice_core.checkpoints.inspection import (
    DEFAULT_SHARD_BYTES,
    RESERVED_HEADER_BYTES,
    TIGHT_BELOW_BYTES,
)
from intraslice_core.config import BudgetField, CompressionConfig, CompressionSettings
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.methods import METHODS, adds_output_biases, resolve_allocator
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, total_parameters

_DEFAULT_ROUND_TO = 8
_HEAD_STEPS, _MLP_STEPS, _RESIDUAL_STEPS = 8, 32, 64
"""Least numbers of rounding steps in a head, an MLP and a residual stream for the default step."""
_TENSORS_PER_LAYER = 9
_OUTER_TENSORS = 3
_HEADER_BYTES_PER_TENSOR = 128
"""Upper bound for a tensor's name, dtype, shape and offsets in a safetensors header."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Compressible parameters of all layers to keep."""

    parameters: int
    ratio: float
    """Fraction of the compressible parameters to remove; exactly the requested one, if any."""
    field: BudgetField
    """Setting that the budget was given by."""


def resolve_round_to(settings: CompressionSettings, geometry: ModelGeometry) -> int:
    """Return the requested rounding step, or the one for the model's dimensions.

    By default it is 8, which kernels prefer. Narrow models get a smaller power of two, so that a
    head has at least 8 steps and an MLP 32, or a residual stream to be sliced 64; otherwise few
    budgets could be met.
    """
    if settings.round_to is not None:
        return settings.round_to
    sizes = [(geometry.head_dim, _HEAD_STEPS), (geometry.intermediate_size, _MLP_STEPS)]
    if METHODS[settings.method].slices_residual:
        sizes = [(geometry.hidden_size, _RESIDUAL_STEPS)]
    step = _DEFAULT_ROUND_TO
    while step > 1 and any(size < steps * step for size, steps in sizes):
        step //= 2
    return step


def pair_step(round_to: int) -> int:
    """Return the rounding step of rotary pairs: two dimensions per pair, rounded to `round_to`."""
    return round_to // 2 if round_to % 2 == 0 else round_to


def smallest_plan(geometry: ModelGeometry, round_to: int) -> ModelPlan:
    """Return the smallest plan with all heads: one rounding step of every other dimension."""
    layer = LayerPlan(
        num_attention_heads=geometry.num_attention_heads,
        num_key_value_heads=geometry.num_key_value_heads,
        qk_pairs=min(pair_step(round_to), geometry.rotary_pairs),
        v_head_dim=min(round_to, geometry.head_dim),
        intermediate_size=min(round_to, geometry.intermediate_size),
    )
    return ModelPlan(layers=(layer,) * geometry.num_hidden_layers)


def compression_budget(
    config: CompressionConfig, geometry: ModelGeometry, item_bytes: int
) -> Budget:
    """Convert ratio, total parameters or bytes to compressible parameters to keep.

    Bytes are those of the weights and of the file header. The header's size is an upper bound, so
    that the file does not exceed the target because of it.

    Args:
        config: settings with exactly one budget.
        geometry: of the dense model.
        item_bytes: size of a stored weight in bytes.

    Raises:
        BudgetOutOfReachError: if the budget exceeds the dense model or is below the parameters
            that cannot be removed.
        ConfigurationError: if the model is a result with parts of the residual stream.
    """
    if METHODS[config.method].slices_residual:
        require_foldable_norms(geometry)
    if any(layer.residual_parts is not None for layer in geometry.input_layers):
        raise ConfigurationError(
            "the modules of this model read and write parts of the residual stream, and no method "
            "cuts such a model further",
            field="model",
            hint="compress the original model",
        )
    if config.ratio is not None:
        budget = _by_ratio(config.ratio, geometry)
    elif config.target_params is not None:
        added = _added(config, geometry)
        budget = _by_total(config.target_params, geometry, "target_params", added)
    else:
        added = _added(config, geometry)
        budget = _by_bytes(config.target_bytes or 0, geometry, item_bytes, added)
    _require_reachable(budget, config, geometry, item_bytes)
    return budget


def _by_ratio(ratio: float, geometry: ModelGeometry) -> Budget:
    """Return the budget of a ratio."""
    dense = geometry.dense_plan().parameters(geometry)
    return Budget(parameters=round((1.0 - ratio) * dense), ratio=ratio, field="ratio")


def _added(config: CompressionConfig, geometry: ModelGeometry) -> int:
    """Return the number of bias parameters that the method adds to the result."""
    if not adds_output_biases(config):
        return 0
    plan, result = geometry.dense_plan(), geometry.with_output_biases()
    return total_parameters(result, plan) - total_parameters(geometry, plan)


def _by_total(total: int, geometry: ModelGeometry, field: BudgetField, added: int) -> Budget:
    """Return the budget of a total parameter count, of which `added` are new biases.

    Raises:
        BudgetOutOfReachError: if it exceeds the dense model's.
    """
    plan = geometry.dense_plan()
    dense, whole = plan.parameters(geometry), total_parameters(geometry, plan)
    if total > whole:
        raise BudgetOutOfReachError(
            f"{total:,} parameters exceed the dense model's {whole:,}",
            field=f"compression.{field}",
            hint=f"give at most {whole:,}",
        )
    keep = total - added - (whole - dense)
    return Budget(parameters=keep, ratio=1.0 - keep / dense, field=field)


def _by_bytes(size: int, geometry: ModelGeometry, item_bytes: int, added: int) -> Budget:
    """Return the budget of a file size; `added` as for `_by_total`.

    Raises:
        BudgetOutOfReachError: if it exceeds the dense model's.
    """
    whole = total_parameters(geometry, geometry.dense_plan())
    largest = _file_bytes(whole, geometry, item_bytes)
    if size > largest:
        raise BudgetOutOfReachError(
            f"{size:,} bytes exceed the dense model's {largest:,}",
            field="compression.target_bytes",
            hint=f"give at most {largest:,}",
        )
    biases = 2 * geometry.num_hidden_layers * _HEADER_BYTES_PER_TENSOR if added else 0
    total = (size - _header_bytes(size, geometry) - biases) // item_bytes
    return _by_total(min(total, whole), geometry, "target_bytes", added)


def _file_bytes(total: int, geometry: ModelGeometry, item_bytes: int) -> int:
    """Return an upper bound of the file size for a total parameter count."""
    return total * item_bytes + _header_bytes(total * item_bytes, geometry)


def _header_bytes(size: int, geometry: ModelGeometry) -> int:
    """Return the size of the headers: minimal in a small file, reserved in large ones."""
    if size >= TIGHT_BELOW_BYTES:
        return (1 + size // DEFAULT_SHARD_BYTES) * (8 + RESERVED_HEADER_BYTES)
    tensors = _TENSORS_PER_LAYER * geometry.num_hidden_layers + _OUTER_TENSORS
    return tensors * _HEADER_BYTES_PER_TENSOR


def _require_reachable(
    budget: Budget, settings: CompressionSettings, geometry: ModelGeometry, item_bytes: int
) -> None:
    """Raise if the budget is below what rounding and the module cap always keep.

    Raises:
        BudgetOutOfReachError: naming the bound in the unit of the request.
    """
    dense = geometry.dense_plan().parameters(geometry)
    step = resolve_round_to(settings, geometry)
    # `require_rounding` checks the bounds of whole units and layers, and of the residual stream.
    method = METHODS[settings.method]
    whole_units = method.units is not None or method.layers is not None
    other_bounds = whole_units or method.slices_residual or method.residual_parts
    rounded = 0 if other_bounds else smallest_plan(geometry, step).parameters(geometry)
    without_cap = ("uniform", "two_stage", "whole_layers", "residual_width", "hypernetwork")
    ignores_cap = resolve_allocator(settings) in without_cap
    capped = 0 if ignores_cap else round((1.0 - settings.module_cap) * dense)
    minimum = max(rounded, capped)
    if budget.parameters >= minimum:
        return
    advice = ", or a larger module_cap"
    if rounded >= capped:
        finer = _reaching_step(budget.parameters, geometry, step)
        advice = "" if finer is None else f", or a round_to of at most {finer}"
    raise BudgetOutOfReachError(
        f"the budget keeps {max(budget.parameters, 0):,} of {dense:,} compressible parameters, but "
        f"{minimum:,} cannot be removed",
        field=f"compression.{budget.field}",
        hint=f"give {_limit(budget.field, minimum, geometry, item_bytes)}{advice}",
    )


def _reaching_step(parameters: int, geometry: ModelGeometry, step: int) -> int | None:
    """Return the largest smaller rounding step whose smallest shapes are within the budget."""
    return next(
        (
            smaller
            for smaller in range(step - 1, 0, -1)
            if smallest_plan(geometry, smaller).parameters(geometry) <= parameters
        ),
        None,
    )


def _limit(field: BudgetField, minimum: int, geometry: ModelGeometry, item_bytes: int) -> str:
    """Return the bound in the unit of the request."""
    plan = geometry.dense_plan()
    dense, whole = plan.parameters(geometry), total_parameters(geometry, plan)
    if field == "ratio":
        return f"a ratio of at most {1.0 - minimum / dense:.4f}"
    total = whole - dense + minimum
    if field == "target_params":
        return f"at least {total:,} parameters"
    return f"at least {_file_bytes(total, geometry, item_bytes):,} bytes"
