"""Results of earlier compressions as inputs: targets `research` and `adaptive`.

Their layers differ in shape. The engine reads them as dense models of the original sizes whose
removed dimensions are zero, which computes the same (docs/method.md, section 1). Nothing here
imports torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_attention_bias,
    has_mlp_bias,
    rope_parameters,
)
from intraslice_core.plan import LayerPlan, ModelGeometry, ResidualParts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

RESEARCH, ADAPTIVE = "intraslice", "nemotron-nas"
NO_ATTENTION: Mapping[str, int] = dict.fromkeys(
    ("num_attention_heads", "num_key_value_heads", "qk_pairs", "v_head_dim"), 0
)


RESIDUAL_PARTS = tuple(ResidualParts.model_fields)
"""Keys of `per_layer_config` with masks of the residual stream."""


class ResearchFamily(Family):
    """Table of `IntraSliceForCausalLM`, the canonical architecture itself."""

    model_type = RESEARCH
    architecture = "IntraSliceForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(32_000, 4096, 11_008, 32, 32, None))

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return no settings: the adapter copies all of them."""
        del config
        return {}

    def geometry(self, settings: Mapping[str, Any]) -> ModelGeometry:
        """Return the original dimensions and the shapes of the layers.

        Raises:
            UnsupportedArchitectureError: if the residual stream is sliced: such a model is no dense
                one whose removed dimensions are zero.
        """
        if settings.get("residual_shortcuts"):
            raise UnsupportedArchitectureError(
                "models with a sliced residual stream, the results of method slicegpt, are not "
                "supported as inputs",
                field="model",
                hint="compress the original model",
            )
        geometry = super().geometry(settings)
        own = settings.get("per_layer_config") or {}
        layers = tuple(
            _research_layer(geometry, own.get(str(layer), own.get(layer)) or {})
            for layer in range(geometry.num_hidden_layers)
        )
        return geometry.model_copy(update={"input_layers": layers})

    def _optional_tensors(self, values: Mapping[str, Any]) -> dict[str, Any]:
        parallel, output_norms = values.get("parallel_block"), values.get("output_norms")
        flags = (
            *("qk_norm", "attention_bias", "attention_output_bias"),
            *("mlp_bias", "mlp_output_bias", "lm_head_bias"),
        )
        return {
            "mlp_projections": 3 if values.get("gated_mlp", True) else 2,
            "norms_per_layer": 1 if parallel else 4 if output_norms else 2,
            "norm_bias": values.get("norm_type") == "layer",
            **{flag: bool(values.get(flag)) for flag in flags},
        }


def _adaptive_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file: Llama's, and the shapes of the layers.

    Raises:
        UnsupportedArchitectureError: if a layer has some of the heads, or no MLP.
    """
    heads, groups = "attention.head_count", "attention.head_count_kv"
    sizes = list(zip(gguf.per_layer(heads), gguf.per_layer(groups), strict=True))
    whole = (gguf.integer(heads), gguf.integer(groups))
    for number, size in enumerate(sizes):
        if size not in (whole, (0, 0)):
            raise gguf.unsupported(heads, f"{size[0]} with {groups} {size[1]} in layer {number}")
    widths = gguf.per_layer("feed_forward_length")
    if min(widths) < 1:
        raise gguf.unsupported("feed_forward_length", f"{min(widths)} (a layer without MLP)")
    return {
        "attention_bias": has_attention_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "rope_parameters": rope_parameters(gguf),
        "block_configs": [
            _block(size == (0, 0), whole[0] // whole[1], width)
            for size, width in zip(sizes, widths, strict=True)
        ],
    }


def _block(no_attention: bool, heads_in_group: int, width: int) -> dict[str, dict[str, Any]]:
    per_group = None if no_attention else heads_in_group
    return {
        "attention": {"no_op": no_attention, "n_heads_in_group": per_group},
        "ffn": {"no_op": False, "intermediate_size": width},
    }


class AdaptiveFamily(Family):
    """Table of `DeciLMForCausalLM` as the target `adaptive` writes it: a Llama."""

    model_type = ADAPTIVE
    architecture = "DeciLMForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(32_000, 4096, 11_008, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )
    gguf = GgufTable(
        architecture="deci", settings=_adaptive_gguf, interleaved=True, layers_differ=True
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the base family: the canonical defaults are Llama's."""
        del config
        return {"base_model_type": "llama"}

    def geometry(self, settings: Mapping[str, Any]) -> ModelGeometry:
        """Return the attention's dimensions, the largest width and the shapes of the layers."""
        geometry = super().geometry(settings)
        blocks = settings.get("block_configs") or [{}] * geometry.num_hidden_layers
        layers = tuple(_adaptive_layer(geometry, block) for block in blocks)
        return geometry.model_copy(update={"input_layers": layers})


def _research_layer(geometry: ModelGeometry, own: Mapping[str, Any]) -> LayerPlan:
    """Return the shape of a layer from its entry of `per_layer_config`; missing keys are dense."""
    width = own.get("intermediate_size", geometry.intermediate_size)
    parts = _residual_parts(geometry, own)
    heads = own.get("num_attention_heads", geometry.num_attention_heads)
    if heads == 0:
        return LayerPlan(**NO_ATTENTION, intermediate_size=width, residual_parts=parts)
    return LayerPlan(
        num_attention_heads=heads,
        num_key_value_heads=own.get("num_key_value_heads", geometry.num_key_value_heads),
        qk_pairs=own.get("qk_head_dim", geometry.head_dim) // 2,
        v_head_dim=own.get("v_head_dim", geometry.head_dim),
        intermediate_size=width,
        residual_parts=parts,
    )


def _residual_parts(geometry: ModelGeometry, own: Mapping[str, Any]) -> ResidualParts | None:
    """Return the sizes of a layer's reads and writes of the residual stream; None if all whole."""
    if not any(own.get(name) for name in RESIDUAL_PARTS):
        return None
    sizes = {name: len(mask_of(own.get(name, ""), geometry.hidden_size)) for name in RESIDUAL_PARTS}
    return ResidualParts(**sizes)


def mask_of(text: str, total: int) -> list[int]:
    """Return the positions of a hexadecimal mask, ascending; an empty text keeps all."""
    (positions,) = rotary_pairs_of(text, 1, total)
    return positions


def _adaptive_layer(geometry: ModelGeometry, block: Mapping[str, Any]) -> LayerPlan:
    """Return the shape of a layer from its entry of `block_configs`."""
    attention, ffn = block.get("attention", {}), block.get("ffn", {})
    width = ffn.get("intermediate_size", geometry.intermediate_size)
    removed = NO_ATTENTION if attention.get("no_op") else {}
    return geometry.dense_layer().model_copy(update={**removed, "intermediate_size": width})


def rotary_pairs_of(text: str, groups: int, total: int) -> list[list[int]]:
    """Return the kept pairs of each KV head from hexadecimal masks; an empty text keeps all."""
    if not text:
        return [list(range(total))] * groups
    masks = [int(mask, 16) for mask in text.split(",")]
    return [[pair for pair in range(total) if mask >> pair & 1] for mask in masks]
