"""Mistral: a Llama that may look back through a window in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def window_everywhere(config: PreTrainedConfig) -> dict[str, Any]:
    """A window, where there is one, that holds for all layers."""
    window = config.sliding_window
    kind = "full_attention" if window is None else "sliding_attention"
    return {"sliding_window": window, "layer_types": (kind,) * config.num_hidden_layers}


class MistralFamily(Family):
    """Adapter of `MistralForCausalLM`."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(32_000, 4096, 14_336, 32, 32, 8))

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The window."""
        return window_everywhere(config)

    def faults(self, config: PreTrainedConfig) -> Iterator[str]:
        """Mistral's classes ignore layer types, which models of later classes name."""
        types = getattr(config, "layer_types", None)
        if types is not None and tuple(types) != window_everywhere(config)["layer_types"]:
            yield f"layer_types {sorted(set(types))}"
