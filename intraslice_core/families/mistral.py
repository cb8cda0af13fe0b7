"""Mistral families: Llama with an optional sliding window in every layer.

Ministral 3 multiplies its queries by a factor that grows with the position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import GgufSettings, GgufTable, rope_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def window_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of one sliding window for all layers, or of full attention."""
    window = config.sliding_window
    layer_type = "full_attention" if window is None else "sliding_attention"
    return {"sliding_window": window, "layer_types": (layer_type,) * config.num_hidden_layers}


class MistralFamily(Family):
    """Table of `MistralForCausalLM`."""

    model_type = "mistral"
    title = "Mistral"
    architecture = "MistralForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(32_000, 4096, 14_336, 32, 32, 8))

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the sliding window of all layers."""
        return window_settings(config)

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield differing layer types: Mistral's classes ignore them, but later models set them."""
        layer_types = getattr(config, "layer_types", None)
        if layer_types is not None and tuple(layer_types) != window_settings(config)["layer_types"]:
            yield f"layer_types {sorted(set(layer_types))}"


_BESIDE_ROPE = ("llama_4_scaling_beta", "max_position_embeddings")
"""Entries of `rope_parameters` that are not settings of the rotary embedding."""


def _ministral_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; without scaled queries it holds a Mistral.

    Raises:
        UnsupportedArchitectureError: if queries are scaled, but the rotary embedding is not YaRN's,
            whose original context is the length that they are scaled by.
    """
    rope, beta = rope_parameters(gguf), gguf.number("attention.temperature_scale", 0.0)
    window = gguf.integer("attention.sliding_window", 0) or None
    settings = {"sliding_window": window, "rope_parameters": rope}
    if not beta:
        return settings | {"model_type": "mistral"}
    if rope["rope_type"] != "yarn":
        raise gguf.unsupported("attention.temperature_scale", f"{beta} without YaRN")
    return settings | {"rope_parameters": rope | {"llama_4_scaling_beta": float(beta)}}


class Ministral3Family(MistralFamily):
    """Table of `Ministral3ForCausalLM`, the text model."""

    model_type = "ministral3"
    title = "Ministral 3"
    architecture = "Ministral3ForCausalLM"
    gguf = GgufTable(architecture="mistral3", settings=_ministral_gguf, interleaved=True)
    facts = FamilyFacts(defaults=default_sizes(131_072, 4096, 14_336, 34, 32, 8, head_dim=128))

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the sliding window, the rotary embedding and the scaling of queries."""
        rope = dict(config.rope_parameters or {})
        beta, length = (
            rope.get("llama_4_scaling_beta"),
            rope.get("original_max_position_embeddings"),
        )
        scales = beta and length
        return super().settings(config) | {
            "rope_parameters": {k: v for k, v in rope.items() if k not in _BESIDE_ROPE},
            "query_scaling": {"beta": beta, "length": length} if scales else None,
        }
