"""How many compressible parameters stay, however it was asked for; torch-free arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.checkpoints.inspection import (
    DEFAULT_SHARD_BYTES,
    RESERVED_HEADER_BYTES,
    TIGHT_BELOW_BYTES,
)
from intraslice_core.config import BudgetField, CompressionConfig, CompressionSettings
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.methods import resolve_allocator
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, total_parameters

_TENSORS_A_LAYER = 9
_OUTER_TENSORS = 3
_HEADER_BYTES_A_TENSOR = 128
"""Name, dtype, shape and offsets in a safetensors header, generously."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Compressible parameters that stay, of all layers together."""

    parameters: int
    ratio: float
    """Fraction of the compressible parameters removed; as given, where it was given so."""
    field: BudgetField
    """What it was asked by."""


def pair_step(round_to: int) -> int:
    """Rotary pairs come and go by so many: q/k dims are two a pair and multiples of `round_to`."""
    return round_to // 2 if round_to % 2 == 0 else round_to


def smallest_plan(geometry: ModelGeometry, round_to: int) -> ModelPlan:
    """All heads, and one rounding step of every other dimension, in every layer."""
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
    """Turn ratio, total parameters or bytes into compressible parameters to keep.

    Bytes are those of the weights and of the header before them; the header is reckoned
    generously, so that the file does not outgrow the target by it.

    Args:
        config: with exactly one budget.
        geometry: of the dense model.
        item_bytes: of a stored weight.

    Raises:
        BudgetOutOfReachError: if it is more than the dense model has, or less than what cannot
            be removed.
    """
    if config.ratio is not None:
        budget = _by_ratio(config.ratio, geometry)
    elif config.target_params is not None:
        budget = _by_total(config.target_params, geometry, "target_params")
    else:
        budget = _by_bytes(config.target_bytes or 0, geometry, item_bytes)
    _require_reachable(budget, config, geometry, item_bytes)
    return budget


def _by_ratio(ratio: float, geometry: ModelGeometry) -> Budget:
    dense = geometry.dense_plan().parameters(geometry)
    return Budget(parameters=round((1.0 - ratio) * dense), ratio=ratio, field="ratio")


def _by_total(total: int, geometry: ModelGeometry, field: BudgetField) -> Budget:
    plan = geometry.dense_plan()
    dense, whole = plan.parameters(geometry), total_parameters(geometry, plan)
    if total > whole:
        raise BudgetOutOfReachError(
            f"{total:,} parameters are more than the dense model's {whole:,}",
            field=f"compression.{field}",
            hint=f"give at most {whole:,}",
        )
    keep = total - (whole - dense)
    return Budget(parameters=keep, ratio=1.0 - keep / dense, field=field)


def _by_bytes(size: int, geometry: ModelGeometry, item_bytes: int) -> Budget:
    whole = total_parameters(geometry, geometry.dense_plan())
    largest = _file_bytes(whole, geometry, item_bytes)
    if size > largest:
        raise BudgetOutOfReachError(
            f"{size:,} bytes are more than the dense model's {largest:,}",
            field="compression.target_bytes",
            hint=f"give at most {largest:,}",
        )
    total = (size - _header_bytes(size, geometry)) // item_bytes
    return _by_total(min(total, whole), geometry, "target_bytes")


def _file_bytes(total: int, geometry: ModelGeometry, item_bytes: int) -> int:
    return total * item_bytes + _header_bytes(total * item_bytes, geometry)


def _header_bytes(size: int, geometry: ModelGeometry) -> int:
    """As the writer makes them: just large enough in a small file, one size in large ones."""
    if size >= TIGHT_BELOW_BYTES:
        return (1 + size // DEFAULT_SHARD_BYTES) * (8 + RESERVED_HEADER_BYTES)
    tensors = _TENSORS_A_LAYER * geometry.num_hidden_layers + _OUTER_TENSORS
    return tensors * _HEADER_BYTES_A_TENSOR


def _require_reachable(
    budget: Budget, settings: CompressionSettings, geometry: ModelGeometry, item_bytes: int
) -> None:
    """Rounding leaves a step of everything, and the cap a part of every module."""
    dense = geometry.dense_plan().parameters(geometry)
    rounded = smallest_plan(geometry, settings.round_to).parameters(geometry)
    capped = 0
    if resolve_allocator(settings) != "uniform":
        capped = round((1.0 - settings.module_cap) * dense)
    least = max(rounded, capped)
    if budget.parameters >= least:
        return
    advice = "a smaller round_to" if rounded >= capped else "a larger module_cap"
    raise BudgetOutOfReachError(
        f"{max(budget.parameters, 0):,} of {dense:,} compressible parameters would stay, and "
        f"{least:,} cannot be removed",
        field=f"compression.{budget.field}",
        hint=f"give {_limit(budget.field, least, geometry, item_bytes)}, or {advice}",
    )


def _limit(field: BudgetField, least: int, geometry: ModelGeometry, item_bytes: int) -> str:
    """The bound, in the words of the request."""
    plan = geometry.dense_plan()
    dense, whole = plan.parameters(geometry), total_parameters(geometry, plan)
    if field == "ratio":
        return f"a ratio of at most {1.0 - least / dense:.4f}"
    total = whole - dense + least
    if field == "target_params":
        return f"at least {total:,} parameters"
    return f"at least {_file_bytes(total, geometry, item_bytes):,} bytes"
