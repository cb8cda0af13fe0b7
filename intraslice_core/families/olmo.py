"""OLMo families: norms on outputs only, and q and k normed over all heads together.

OLMo 3 has a sliding window in three of four layers, whose rotary embedding is not scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Olmo2Family(Family):
    """Table of `Olmo2ForCausalLM`."""

    model_type = "olmo2"
    title = "OLMo 2"
    architecture = "Olmo2ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(50_304, 4096, 11_008, 32, 32, None),
        qk_norm=True,
        qk_norm_across_heads=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
    modules = {  # noqa: RUF012  # a constant of the class
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the norm type and the place of the norms."""
        del config
        return {"norm_type": "rms_float32", "input_norms": False, "output_norms": True}


class Olmo3Family(Olmo2Family):
    """Table of `Olmo3ForCausalLM`."""

    model_type = "olmo3"
    title = "OLMo 3"
    architecture = "Olmo3ForCausalLM"

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return OLMo 2's settings and the layers with a sliding window."""
        return super().settings(config) | {
            "sliding_window": config.sliding_window,
            "layer_types": tuple(config.layer_types),
        }
