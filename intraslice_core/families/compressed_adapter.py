"""Adapter of compressed checkpoints to the canonical architecture, padded with zeros.

A removed rotary pair, value dimension, head or neuron is a pair, dimension, head or neuron whose
weights are zero: it contributes nothing, and norms of queries and keys divide by the dense head
dimension. Real heads come first in every KV group, real groups first in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.families import COMPRESSED_FAMILIES
from intraslice_core.families.adapter import LAYER_TYPES, FamilyAdapter, family_for
from intraslice_core.families.canonical import (
    HEAD_NORMS,
    CanonicalSettings,
    layer_shapes,
    outer_shapes,
)
from intraslice_core.families.compressed import (
    RESEARCH,
    RESIDUAL_PARTS,
    mask_of,
    rotary_pairs_of,
)
from intraslice_core.plan import LayerPlan

_COLUMNS_OF_HEADS, _COLUMNS_OF_NEURONS = "self_attn.o_proj", "mlp.down_proj"


@dataclass(frozen=True)
class CompressedAdapter(FamilyAdapter):
    """View of a `research` or `adaptive` result as a dense model with zeros."""

    def canonical_settings(self, config: PreTrainedConfig) -> CanonicalSettings:
        """Return the settings of the original model."""
        settings = super().canonical_settings(config)
        if config.model_type == RESEARCH:
            settings |= self._research_settings(config, settings)
        else:
            settings["norm_eps"] = config.rms_norm_eps
        return settings

    def _research_settings(self, config: Any, settings: CanonicalSettings) -> CanonicalSettings:
        """Return the settings that `IntraSliceConfig` has under the same names."""
        view = config.dense_view()
        own = {name: getattr(view, name) for name in settings if hasattr(view, name)}
        kinds = [kind for kind in own["layer_types"] if kind in LAYER_TYPES]
        usual = kinds[0] if kinds else "full_attention"
        # The type of a layer without attention is lost; it does not matter.
        own["layer_types"] = tuple(
            kind if kind in LAYER_TYPES else usual for kind in own["layer_types"]
        )
        own["original_max_position_embeddings"] = getattr(
            view, "original_max_position_embeddings", None
        )
        return own

    def require_supported(self, config: PreTrainedConfig) -> None:
        """Accept what an earlier compression has written."""
        geometry = self.geometry(config)
        if len(geometry.input_layers) != geometry.num_hidden_layers:
            raise BrokenCheckpointError(
                f"config.json describes {len(geometry.input_layers)} layers, num_hidden_layers is "
                f"{geometry.num_hidden_layers}",
                field="model",
            )

    # -- names and shapes ------------------------------------------------------------------

    def expected_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the checkpoint must hold, by full name."""
        settings = self.canonical_settings(config)
        shapes = outer_shapes(settings)
        for index, layer in enumerate(self.geometry(config).input_layers):
            prefix = self.layer_prefix(index)
            own = self._own_shapes(settings, layer)
            shapes |= {prefix + name: shape for name, shape in own.items()}
        return shapes

    def stored_shapes(self, config: PreTrainedConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a compressed layer's tensors; the names are the canonical ones."""
        return self.canonical_shapes(config, layer)

    def canonical_shapes(self, config: PreTrainedConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a compressed layer's stored tensors by canonical name."""
        plan = self.geometry(config).input_layers[layer]
        return self._own_shapes(self.canonical_settings(config), plan)

    def _own_shapes(
        self, settings: CanonicalSettings, layer: LayerPlan
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a compressed layer's tensors, by name without the prefix."""
        queries = layer.num_attention_heads * layer.qk_head_dim
        keys = layer.num_key_value_heads * layer.qk_head_dim
        values = layer.num_key_value_heads * layer.v_head_dim
        rows = {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": values,
            "mlp.gate_proj": layer.intermediate_size,
            "mlp.up_proj": layer.intermediate_size,
            **dict.fromkeys(HEAD_NORMS.values(), keys),
        }
        columns = {
            _COLUMNS_OF_HEADS: layer.num_attention_heads * layer.v_head_dim,
            _COLUMNS_OF_NEURONS: layer.intermediate_size,
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._shapes_with_parts(settings, layer).items():
            module, _, kind = name.rpartition(".")
            size = rows.get(module, columns.get(module))
            if size == 0 or (size is None and not self._has_norm(module, layer)):
                continue
            if module in rows:
                shape = (rows[module], *shape[1:])
            elif module in columns and kind == "weight":
                shape = (shape[0], columns[module])
            shapes[name] = shape
        return shapes

    @staticmethod
    def _shapes_with_parts(
        settings: CanonicalSettings, layer: LayerPlan
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a dense layer with the layer's reads and writes."""
        shapes = layer_shapes(settings)
        for name, shape in shapes.items():
            module, _, kind = name.rpartition(".")
            mask = _MASKS.get(module)
            if layer.residual_parts is None or mask is None:
                continue
            size = getattr(layer.residual_parts, mask)
            if mask.endswith("writes"):
                shapes[name] = (size, *shape[1:])
            elif kind == "weight":
                shapes[name] = (shape[0], size)
        return shapes

    def _has_norm(self, module: str, layer: LayerPlan) -> bool:
        """Return False for the input norm of a removed attention in the adaptive form."""
        removed = layer.num_attention_heads == 0 and self.model_type != RESEARCH
        return not (removed and module == "input_layernorm")

    # -- tensors ---------------------------------------------------------------------------

    def canonical_layer(
        self, config: PreTrainedConfig, layer: int, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a layer's tensors in the original shapes, with zeros for what was removed."""
        settings = self.canonical_settings(config)
        plan = self.geometry(config).input_layers[layer]
        some = next(iter(tensors.values()))
        if plan.residual_parts is not None:
            own, hidden = config.per_layer_config[layer], settings["hidden_size"]
            masks = {name: mask_of(getattr(own, name), hidden) for name in RESIDUAL_PARTS}
            tensors = _with_whole_stream(tensors, masks, hidden)
        padded: dict[str, Tensor] = {}
        for name, shape in layer_shapes(settings).items():
            module = name.rpartition(".")[0]
            if name not in tensors:
                padded[name] = some.new_zeros(shape)
            elif module in _PAIRED:
                pairs = self._pairs(config, layer, plan, settings["head_dim"] // 2)
                padded[name] = _padded_pairs(tensors[name], plan, pairs, module, settings)
            elif module == "self_attn.v_proj":
                padded[name] = _padded_values(tensors[name], plan, settings)
            elif module == _COLUMNS_OF_HEADS and name.endswith("weight"):
                padded[name] = _padded_columns(tensors[name], plan, settings)
            else:
                padded[name] = _padded_end(tensors[name], shape)
        return padded

    def _pairs(self, config: Any, layer: int, plan: LayerPlan, total: int) -> list[list[int]]:
        """Return the kept pairs of each KV head of a layer."""
        text = config.per_layer_config[layer].rotary_pairs if config.model_type == RESEARCH else ""
        return rotary_pairs_of(text, plan.num_key_value_heads, total)


_PAIRED = ("self_attn.q_proj", "self_attn.k_proj", *HEAD_NORMS.values())


_MASKS = {
    **dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention_reads"
    ),
    "self_attn.o_proj": "attention_writes",
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "mlp_reads"),
    "mlp.down_proj": "mlp_writes",
}
"""Mask of the residual stream that each projection reads or writes by."""


def _with_whole_stream(
    tensors: Mapping[str, Tensor], masks: Mapping[str, list[int]], hidden_size: int
) -> dict[str, Tensor]:
    """Return tensors whose projections read and write the whole residual stream, zero elsewhere.

    Args:
        tensors: of a layer.
        masks: dimensions by the names of `RESIDUAL_PARTS`.
        hidden_size: dimensions of the stream.
    """
    whole = dict(tensors)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        mask = _MASKS.get(module)
        if mask is None or (mask.endswith("reads") and kind != "weight"):
            continue
        dim = 0 if mask.endswith("writes") else 1
        shape = [hidden_size if own == dim else size for own, size in enumerate(tensor.shape)]
        index = torch.tensor(masks[mask], device=tensor.device)
        whole[name] = tensor.new_zeros(shape).index_copy(dim, index, tensor)
    return whole


def _padded_end(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Append zeros to every dimension."""
    missing = [size - own for size, own in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [part for size in reversed(missing) for part in (0, size)])


def _padded_pairs(
    rows: Tensor,
    plan: LayerPlan,
    pairs: list[list[int]],
    module: str,
    settings: CanonicalSettings,
) -> Tensor:
    """Return rows (heads · 2·pairs, …) as (dense heads · head_dim, …), each pair in its place."""
    groups, half = plan.num_key_value_heads, settings["head_dim"] // 2
    heads = settings["num_attention_heads"] if module == _PAIRED[0] else None
    per_group = (heads or settings["num_key_value_heads"]) // settings["num_key_value_heads"]
    own = rows.view(groups, -1, 2, plan.qk_pairs, *rows.shape[1:])
    full = rows.new_zeros(settings["num_key_value_heads"], per_group, 2, half, *rows.shape[1:])
    for group, kept in enumerate(pairs):
        index = torch.tensor(kept)
        full[group, : own.shape[1]].index_copy_(2, index, own[group])
    return full.flatten(0, 3)


def _padded_values(rows: Tensor, plan: LayerPlan, settings: CanonicalSettings) -> Tensor:
    """Return rows (groups · v_head_dim, …) as (dense groups · head_dim, …)."""
    own = rows.view(plan.num_key_value_heads, plan.v_head_dim, *rows.shape[1:])
    shape = (settings["num_key_value_heads"], settings["head_dim"], *rows.shape[1:])
    return _padded_end(own, shape).flatten(0, 1)


def _padded_columns(weight: Tensor, plan: LayerPlan, settings: CanonicalSettings) -> Tensor:
    """Return columns (hidden, heads · v_head_dim) as (hidden, dense heads · head_dim)."""
    groups, dense_groups = plan.num_key_value_heads, settings["num_key_value_heads"]
    own = weight.view(weight.shape[0], groups, -1, plan.v_head_dim)
    per_group = settings["num_attention_heads"] // dense_groups
    shape = (weight.shape[0], dense_groups, per_group, settings["head_dim"])
    return _padded_end(own, shape).flatten(1)


def adapter_for(config: PreTrainedConfig) -> FamilyAdapter:
    """Return the adapter for a model's configuration, compressed before or not.

    Raises:
        UnsupportedArchitectureError: if the family or one of its settings is not supported.
    """
    if config.model_type not in COMPRESSED_FAMILIES:
        return family_for(config)
    adapter = CompressedAdapter(COMPRESSED_FAMILIES[config.model_type])
    adapter.require_supported(config)
    return adapter
