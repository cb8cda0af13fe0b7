"""Qwen 2, with biased q, k and v, and Qwen 3, with normed q and k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen2Family(Family):
    """Adapter of `Qwen2ForCausalLM` (2 and 2.5)."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(151_936, 4096, 22_016, 32, 32, 32),
        attention_bias=True,
    )

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Layers with and without a window."""
        return {"sliding_window": config.sliding_window, "layer_types": tuple(config.layer_types)}


class Qwen3Family(Qwen2Family):
    """Adapter of `Qwen3ForCausalLM`; the norms of q and k are in its geometry."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(151_936, 4096, 22_016, 32, 32, 32, head_dim=128),
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
