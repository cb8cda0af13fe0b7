"""Mistral family: Llama with an optional sliding window in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

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
