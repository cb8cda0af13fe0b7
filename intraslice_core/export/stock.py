"""Target `stock`: a compressed model in the dense model's own architecture.

All layers have one shape, q, k and v heads are equally wide, and all heads keep the same rotary
pairs. These differences are expressed by existing settings and weights (docs/design/targets.md):

* `longrope` factors give the kept pairs their dense frequencies. They divide the frequencies
  `rope_theta^(-j/m)` that the architecture computes for m pairs per head.
* Most architectures divide scores by the square root of the new head dim instead of the dense one.
  The queries, or the weights of their norm, are multiplied by the quotient of the two.
* Norms of q and k take the mean over the new head dim. Their weights are multiplied by
  √(dense / new head dim). The norm's epsilon then counts for more by the same quotient, squared.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.export.gguf_layout import GgufLayout, family_layout
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.families.canonical import (
    HEAD_NORMS,
    CanonicalSettings,
    layer_prefix,
    rope_of,
    rotary_embedding,
)
from intraslice_core.plan import LayerPlan

QUERY_NORM, KEY_NORM = (f"{module}.weight" for module in HEAD_NORMS.values())
QUERY_TENSORS = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")


@dataclass(frozen=True, kw_only=True)
class StockForm:
    """Form of a compressed model as a checkpoint of the dense architecture."""

    family: FamilyAdapter
    config: PreTrainedConfig
    """Configuration of the dense model."""
    canonical: CanonicalSettings
    """Canonical settings of the dense model, of the layers that remain."""
    layers: tuple[int, ...]
    """Numbers of the dense model's layers that remain, ascending."""
    shape: LayerPlan
    """Shape of every layer."""
    pairs: Tensor
    """Kept rotary pairs of every head, (qk_pairs,), ascending."""

    @cached_property
    def stock_config(self) -> PreTrainedConfig:
        """Return the configuration of the compressed model, of the dense model's class."""
        width = self.family.family.setting_names.get("intermediate_size", "intermediate_size")
        sizes: dict[str, Any] = {
            width: self.shape.intermediate_size,
            "architectures": [self.family.architecture],
            **fewer_layers(self.config, self.layers),
        }
        if self.shape.num_attention_heads != self.canonical["num_attention_heads"]:
            sizes["num_attention_heads"] = self.shape.num_attention_heads
            sizes["num_key_value_heads"] = self.shape.num_key_value_heads
        heads, hidden = self.shape.num_attention_heads, self.canonical["hidden_size"]
        if self.config.to_dict().get("head_dim") or heads * self.shape.qk_head_dim != hidden:
            sizes["head_dim"] = self.shape.qk_head_dim
        if self.shape.qk_head_dim != self.canonical["head_dim"]:
            sizes["rope_parameters"] = self._rope_parameters()
        settings = copy.deepcopy(self.config.to_dict()) | sizes
        return type(self.config)(**settings)

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration, of the dense model's class."""
        return self.stock_config

    def _rope_parameters(self) -> dict[str, Any]:
        """Return the rotary settings of the kept pairs, by layer type where the dense ones are."""
        dense = self.canonical["rope_parameters"]
        types = self.canonical["layer_types"]
        if rope_of(self.canonical, types[0]) is dense:
            return self._longrope(0)
        return {layer_type: self._longrope(types.index(layer_type)) for layer_type in set(types)}

    def _longrope(self, layer: int) -> dict[str, Any]:
        embedding = rotary_embedding(self.canonical, layer, torch.device("cpu"))
        frequencies = embedding.inv_freq.double()[self.pairs.cpu()]
        theta = float(rope_of(self.canonical, self.canonical["layer_types"][layer])["rope_theta"])
        exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
        factors = (theta**-exponents / frequencies).tolist()
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "factor": 1.0,
            "attention_factor": float(embedding.attention_scaling),
            "original_max_position_embeddings": self.canonical["max_position_embeddings"],
            "short_factor": factors,
            "long_factor": factors,
        }

    # -- tensors ---------------------------------------------------------------------------

    @cached_property
    def factors(self) -> dict[str, float]:
        """Return the factors on tensors of a layer, by the ends of their canonical names."""
        narrowed = (self.shape.qk_head_dim / self.canonical["head_dim"]) ** 0.5
        stock_scale = self.family.canonical_settings(self.stock_config)["attention_scale"]
        scale = self.canonical["attention_scale"] / stock_scale
        if not self.canonical["qk_norm"]:
            return dict.fromkeys(QUERY_TENSORS, scale)
        return {QUERY_NORM: scale / narrowed, KEY_NORM: 1.0 / narrowed}

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a layer's tensors under the family's full names, in their stored dtype."""
        prefix = next(iter(canonical)).partition("layers.")
        layer = int(prefix[2].partition(".")[0])
        named = {
            name.removeprefix(layer_prefix(layer)): tensor
            for name, tensor in self._scaled(canonical, self.factors).items()
        }
        own_prefix = self.family.layer_prefix(layer)
        return {
            own_prefix + name: tensor
            for name, tensor in layer_in_family_form(
                self.family, self.stock_config, layer, named
            ).items()
        }

    def canonical_tensors(self, stored: StoredTensors) -> dict[str, Tensor]:
        """Return the written tensors in the IntraSlice architecture, in float32."""
        state = {
            name: stored.tensor(own_name).float()
            for name, own_name in self.family.outer_names(self.stock_config).items()
        }
        names = self.family.layer_shapes(self.stock_config)
        inverse = {end: 1.0 / factor for end, factor in self.factors.items()}
        for layer in range(self.canonical["num_hidden_layers"]):
            prefix = self.family.layer_prefix(layer)
            tensors = {name: stored.tensor(prefix + name).float() for name in names}
            canonical = self.family.canonical_layer(self.stock_config, layer, tensors)
            for name, tensor in self._scaled(canonical, inverse).items():
                state[layer_prefix(layer) + name] = tensor
        return state

    def _scaled(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Return the tensors, multiplied in float32 by the factors for the ends of their names."""
        shift = float(self.canonical["norm_type"] == "rms_plus_one")
        scaled = dict(tensors)
        for end, factor in factors.items():
            offset = shift if end in (QUERY_NORM, KEY_NORM) else 0.0
            for name in (name for name in tensors if name.endswith(end) and factor != 1.0):
                tensor = tensors[name]
                scaled[name] = ((tensor.float() + offset) * factor - offset).to(tensor.dtype)
        return scaled

    def gguf_layout(self) -> GgufLayout:
        """Return the layout of a GGUF file of the family's architecture in llama.cpp."""
        return family_layout(self.family, self.stock_config)


_PER_LAYER = ("layer_types", "no_rope_layers", "layers_block_type")
"""Settings of dense configurations with one entry per layer."""
_FIRST_LAYERS = ("max_window_layers",)
"""Settings of dense configurations that count first layers."""


def fewer_layers(config: PreTrainedConfig, layers: Sequence[int]) -> dict[str, Any]:
    """Return the settings of a dense model's configuration that change with its layers.

    Args:
        config: of the dense model.
        layers: numbers of the layers that remain, ascending.

    Returns:
        Settings by their names in config.json; none if all layers remain.
    """
    settings = config.to_dict()
    if len(layers) == config.num_hidden_layers:
        return {}
    changed: dict[str, Any] = {"num_hidden_layers": len(layers)}
    for name in _PER_LAYER:
        if settings.get(name):
            changed[name] = [settings[name][layer] for layer in layers]
    removed = set(range(config.num_hidden_layers)) - set(layers)
    for name in _FIRST_LAYERS:
        if settings.get(name) is not None:
            changed[name] = settings[name] - sum(layer < settings[name] for layer in removed)
    return changed


def layer_in_family_form(
    family: FamilyAdapter, config: PreTrainedConfig, layer: int, canonical: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a layer's tensors under the family's names and in its order of rows.

    This inverts `FamilyAdapter.canonical_layer`, which splits, repeats and reorders rows: it is
    applied to row numbers, and every row is written to the place that it comes from.

    Args:
        family: the family.
        config: configuration of the model in the family's class.
        layer: index of the layer.
        canonical: tensors by canonical names without the layer's prefix.
    """
    shapes = family.layer_shapes(config)
    numbers, rows = {}, 0
    for name, shape in shapes.items():
        numbers[name] = torch.arange(rows, rows + shape[0], dtype=torch.float64)
        numbers[name] = numbers[name].view(-1, *(1,) * (len(shape) - 1))
        rows += shape[0]
    places = family.canonical_layer(config, layer, numbers)
    own: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        first = int(numbers[name].flatten()[0])
        parts = [
            (places[part].flatten().long() - first, part)
            for part in places
            if first <= int(places[part].flatten()[0]) < first + shape[0]
        ]
        tensor = canonical[parts[0][1]].new_empty(shape)
        for place, part in parts:
            tensor[place] = canonical[part]
        own[name] = tensor
    return own
