"""Adapter of a family's dense models to the canonical architecture.

The engine computes with one architecture, that of `canonical.py`. A `Family` is a table with the
canonical settings of its models, the module names in its checkpoints and the settings that are not
supported. The adapter derives names, shapes and tensors from that table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from intraslice_core.errors import (
    BrokenCheckpointError,
    IntraSliceError,
    UnsupportedArchitectureError,
)
from intraslice_core.families import require_supported_type
from intraslice_core.families.canonical import (
    CanonicalSettings,
    layer_shapes,
    outer_shapes,
    rope_of,
    rotary_tables,
    rotates,
    rotating_dims,
)
from intraslice_core.families.family import Family
from intraslice_core.plan import ModelGeometry

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
_ROTATED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.q_norm", "self_attn.k_norm")
_PER_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


@dataclass(frozen=True)
class FamilyAdapter:
    """View of one family's dense models as instances of the canonical architecture."""

    family: Family

    @property
    def model_type(self) -> str:
        """Return transformers' `model_type`."""
        return self.family.model_type

    @property
    def architecture(self) -> str:
        """Return the name of transformers' causal language model class."""
        return self.family.architecture

    # -- settings --------------------------------------------------------------------------

    def geometry(self, config: PreTrainedConfig) -> ModelGeometry:
        """Return the dense model's dimensions.

        Raises:
            BrokenCheckpointError: if the configuration has an impossible size.
        """
        try:
            return self.family.geometry(config.to_dict())
        except ValidationError as error:
            first = error.errors()[0]
            raise BrokenCheckpointError(
                f"config.json: {first['loc'][0]}: {first['msg']}", field="model"
            ) from error

    def canonical_settings(self, config: PreTrainedConfig) -> CanonicalSettings:
        """Return the canonical settings of the dense model."""
        geometry = self.geometry(config)
        common: CanonicalSettings = {
            "base_model_type": self.model_type,
            "vocab_size": geometry.vocab_size,
            "hidden_size": geometry.hidden_size,
            "intermediate_size": geometry.intermediate_size,
            "num_hidden_layers": geometry.num_hidden_layers,
            "num_attention_heads": geometry.num_attention_heads,
            "num_key_value_heads": geometry.num_key_value_heads,
            "head_dim": geometry.head_dim,
            "hidden_act": self._setting(config, "hidden_act"),
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": geometry.tie_word_embeddings,
            "initializer_range": self._setting(config, "initializer_range"),
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
            "dtype": config.dtype,
            "norm_type": "rms",
            "norm_eps": getattr(config, "rms_norm_eps", None),
            "gated_mlp": geometry.mlp_projections == 3,
            "mlp_bias": geometry.mlp_bias,
            "mlp_output_bias": geometry.mlp_output_bias,
            "attention_bias": geometry.attention_bias,
            "attention_output_bias": geometry.attention_output_bias,
            "lm_head_bias": geometry.lm_head_bias,
            "position_rows": geometry.position_rows,
            "position_offset": self.family.position_offset,
            "parallel_block": geometry.norms_per_layer == 1,
            "separate_mlp_norm": False,
            "input_norms": True,
            "output_norms": geometry.norms_per_layer == 4,
            "qk_norm": geometry.qk_norm,
            "qk_norm_across_heads": geometry.qk_norm_across_heads,
            "attention_scale": geometry.head_dim**-0.5,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "embedding_scale": 1.0,
            "residual_scale": 1.0,
            "logit_scale": 1.0,
            "query_scaling": None,
            "rope_layers": None,
            "rope_parameters": self._setting(config, "rope_parameters"),
            "layer_types": ("full_attention",) * geometry.num_hidden_layers,
            "sliding_window": None,
            "original_max_position_embeddings": None,
        }
        return common | self.family.settings(config)

    def _setting(self, config: PreTrainedConfig, name: str) -> Any:
        """Return a setting by its usual name; None if the family has no such setting."""
        return getattr(config, self.family.setting_names.get(name, name), None)

    def require_supported(self, config: PreTrainedConfig) -> None:
        """Raise if the model has a setting that the engine does not support.

        Raises:
            UnsupportedArchitectureError: naming the setting and its value.
        """
        for setting in (
            *self._unsupported_settings(config),
            *self.family.unsupported_settings(config),
        ):
            raise UnsupportedArchitectureError(
                f"{self.model_type} models with {setting} are not supported", field="model"
            )

    def _unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        for setting in ("attention_chunk_size", "quantization_config"):
            if getattr(config, setting, None) is not None:
                yield setting
        geometry = self.geometry(config)
        heads, groups = geometry.num_attention_heads, geometry.num_key_value_heads
        if geometry.head_dim % 2 or heads % groups:
            yield (
                f"num_attention_heads {heads}, num_key_value_heads {groups} and head_dim "
                f"{geometry.head_dim} (head_dim must be even, the KV heads must divide the heads)"
            )
            return
        settings = self.canonical_settings(config)
        if settings["sliding_window"] is not None and settings["sliding_window"] < 1:
            yield f"sliding_window {settings['sliding_window']}"
        if settings["sliding_window"] is None and "sliding_attention" in settings["layer_types"]:
            yield "layer_types 'sliding_attention' without sliding_window"
        if settings["hidden_act"] not in ACT2FN:
            yield f"hidden_act {settings['hidden_act']!r}"
        for layer_type in sorted(set(settings["layer_types"])):
            if layer_type not in LAYER_TYPES:
                yield f"layer_types {layer_type!r}"
            elif settings["rope_layers"] is None or any(settings["rope_layers"]):
                yield from self._unsupported_rope(settings, layer_type)

    def _unsupported_rope(self, settings: CanonicalSettings, layer_type: str) -> Iterator[str]:
        rope = rope_of(settings, layer_type)
        if not rope or rope.get("rope_type", "default") not in ROPE_TYPES:
            yield f"rope_parameters {rope}"
            return
        rotating = rotating_dims(settings, layer_type)
        whole = rotating == settings["head_dim"]
        partly = (
            self.family.rotates_partly and rotating % 2 == 0 and 0 < rotating < settings["head_dim"]
        )
        if not whole and not partly:
            yield f"partial_rotary_factor {rope['partial_rotary_factor']}"

    # -- names and shapes in the family's checkpoints --------------------------------------

    def layer_prefix(self, layer: int) -> str:
        """Return the prefix of the names of a layer's tensors, including the final dot."""
        return f"{self.family.layers}.{layer}."

    def checkpoint_name(self, canonical: str) -> str:
        """Return the name in the family's checkpoints of a tensor outside fused modules."""
        module, _, kind = canonical.rpartition(".")
        return f"{self.family.modules.get(module, module)}.{kind}"

    @property
    def embedding(self) -> str:
        """Return the name of the embedding matrix."""
        return self.checkpoint_name("model.embed_tokens.weight")

    @property
    def final_norm(self) -> str:
        """Return the name of the final norm's weight."""
        return self.checkpoint_name("model.norm.weight")

    def layer_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a dense layer, by name without the layer's prefix."""
        canonical = layer_shapes(self.canonical_settings(config))
        shapes: dict[str, tuple[int, ...]] = {}
        for module, parts in self.family.fused.items():
            for kind in ("weight", "bias"):
                stacked = [canonical.pop(f"{part}.{kind}", None) for part in parts]
                if stacked[0] is not None:
                    rows = sum(shape[0] for shape in stacked if shape)
                    shapes[f"{module}.{kind}"] = (rows, *stacked[0][1:])
        head_dim = self.geometry(config).head_dim
        for name, shape in canonical.items():
            per_head = (
                name.rpartition(".")[0] in _PER_HEAD_NORMS
                and not self.family.facts.qk_norm_across_heads
            )
            shapes[self.checkpoint_name(name)] = (head_dim,) if per_head else shape
        return shapes

    def stored_shapes(self, config: PreTrainedConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of one layer, by name without the layer's prefix."""
        del layer  # all layers of a dense model are alike
        return self.layer_shapes(config)

    def canonical_shapes(self, config: PreTrainedConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's stored tensors by canonical name, none fused."""
        del layer  # all layers of a dense model are alike
        return layer_shapes(self.canonical_settings(config))

    def outer_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor outside the layers; a tied output head has none."""
        shapes = outer_shapes(self.canonical_settings(config))
        return {self.checkpoint_name(name): shape for name, shape in shapes.items()}

    def expected_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the checkpoint must hold, by full name."""
        layer = self.layer_shapes(config)
        return self.outer_shapes(config) | {
            self.layer_prefix(index) + name: shape
            for index in range(config.num_hidden_layers)
            for name, shape in layer.items()
        }

    # -- tensors ---------------------------------------------------------------------------

    def outer_names(self, config: PreTrainedConfig) -> dict[str, str]:
        """Return the checkpoint's names of the tensors outside the layers, by canonical name."""
        shapes = outer_shapes(self.canonical_settings(config))
        return {name: self.checkpoint_name(name) for name in shapes}

    def canonical_layer(
        self, config: PreTrainedConfig, layer: int, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a dense layer's tensors under canonical names, in the canonical order of rows.

        Args:
            config: configuration of the dense model.
            layer: index of the layer.
            tensors: tensors by the family's names, without the layer's prefix.
        """
        settings = self.canonical_settings(config)
        shapes = layer_shapes(settings)
        named = self._unfused(shapes, tensors, settings["head_dim"])
        groups = settings["num_key_value_heads"]
        for module in _PER_HEAD_NORMS:
            if f"{module}.weight" in named and not settings["qk_norm_across_heads"]:
                named[f"{module}.weight"] = named[f"{module}.weight"].repeat(groups)
        order = self.rotary_order(config, layer)
        if order is None:
            return named
        return {
            name: reordered_heads(rows, order) if name.rpartition(".")[0] in _ROTATED else rows
            for name, rows in named.items()
        }

    def rotary_order(self, config: PreTrainedConfig, layer: int) -> Tensor | None:
        """Return the canonical order of the rows of a query or key head, (head_dim,), int64.

        `reordered_heads` applies it to the rows of the family's checkpoints. `order.argsort()` is
        the inverse, from canonical rows to those of the family. None if the orders are equal.
        """
        settings = self.canonical_settings(config)
        rotating = rotating_dims(settings, settings["layer_types"][layer])
        interleaved = self.family.interleaved_rotary
        if not rotates(settings, layer) or (rotating == settings["head_dim"] and not interleaved):
            return None
        return half_split_order(settings["head_dim"], rotating, interleaved=interleaved)

    def _unfused(
        self, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], head_dim: int
    ) -> dict[str, Tensor]:
        """Return the tensors under canonical names, with fused modules split."""
        named: dict[str, Tensor] = {}
        for module, parts in self.family.fused.items():
            for kind in ("weight", "bias"):
                names = [f"{part}.{kind}" for part in parts]
                if names[0] in shapes:
                    rows = [shapes[name][0] for name in names]
                    fused = tensors[f"{module}.{kind}"]
                    if self.family.fused_per_head:
                        fused = _parts_first(fused, len(parts), head_dim)
                    pieces = torch.split(fused, rows)
                    named |= dict(zip(names, pieces, strict=True))
        named |= {name: tensors[self.checkpoint_name(name)] for name in shapes if name not in named}
        return named


def _parts_first(rows: Tensor, parts: int, head_dim: int) -> Tensor:
    """Reorder fused rows from [head][part][row] to [part][head][row]."""
    return rows.view(-1, parts, head_dim, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def half_split_order(head_dim: int, rotating: int, *, interleaved: bool = False) -> Tensor:
    """Return the canonical order of a head's rows, (head_dim,).

    The rows go from [rotating first halves | rotating second halves | still] to [rotating first,
    still first | rotating second, still second]. Still dimensions (without rotary embedding) become
    pairs of frequency 0; any two of them may form a pair.

    Args:
        head_dim: dimensions of a head.
        rotating: dimensions with rotary embedding.
        interleaved: True if the two rotating rows of a pair follow each other.
    """
    half, middle = rotating // 2, rotating + (head_dim - rotating) // 2
    rows = torch.arange(head_dim)
    first, second = rows[:half], rows[half:rotating]
    if interleaved:
        first, second = rows[0:rotating:2], rows[1:rotating:2]
    return torch.cat((first, rows[rotating:middle], second, rows[middle:]))


def reordered_heads(rows: Tensor, order: Tensor) -> Tensor:
    """Reorder the rows (heads · head_dim, …) within every head."""
    return rows.view(-1, order.shape[0], *rows.shape[1:])[:, order].flatten(0, 1)


def family_for(config: PreTrainedConfig) -> FamilyAdapter:
    """Return the adapter for a model's configuration.

    Raises:
        UnsupportedArchitectureError: if the family or one of its settings is not supported.
        BrokenCheckpointError: if a setting cannot be computed with.
    """
    adapter = FamilyAdapter(require_supported_type(config.model_type))
    try:
        adapter.require_supported(config)
        _require_computable(adapter.canonical_settings(config))
    except IntraSliceError:
        raise
    # Values of any type reach the arithmetic of many classes, whose errors share no class.
    except Exception as error:
        raise BrokenCheckpointError(f"config.json: {error}", field="model") from error
    return adapter


_FACTORS = (
    "attention_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "final_logit_softcapping",
    "logit_scale",
    "norm_eps",
    "residual_scale",
)
"""Canonical settings that hidden states, scores or logits are computed with."""


def _require_computable(settings: CanonicalSettings) -> None:
    """Raise if a factor is not a finite number or a rotary table has other values.

    Raises:
        BrokenCheckpointError: naming the setting and its value.
    """
    for name in _FACTORS:
        value = settings[name]
        if value is not None and not (
            isinstance(value, int | float) and math.isfinite(float(value))
        ):
            raise BrokenCheckpointError(
                f"config.json: {name} is {value!r}, expected a finite number", field="model"
            )
    layers = {layer_type: layer for layer, layer_type in enumerate(settings["layer_types"])}
    for layer_type, layer in layers.items():
        if not rotates(settings, layer):
            continue
        tables = rotary_tables(settings, layer, 2, torch.device("cpu"))
        if not (torch.isfinite(tables.cos).all() and torch.isfinite(tables.sin).all()):
            raise BrokenCheckpointError(
                f"config.json: rope_parameters {rope_of(settings, layer_type)} give frequencies "
                "that are not finite",
                field="model",
            )
