"""Llama: rotary, grouped-query attention and a gated MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class LlamaFamily(Family):
    """Adapter of `LlamaForCausalLM`, whose settings are the canonical defaults."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(32_000, 4096, 11_008, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Nothing of its own."""
        del config
        return {}

    def faults(self, config: PreTrainedConfig) -> Iterator[str]:
        """Llama's classes ignore a window that a derived model may need."""
        if getattr(config, "sliding_window", None) is not None:
            yield "sliding_window"
