"""OLMo families: norms on outputs only, and q and k normed over all heads together.

OLMo 3 has a sliding window in three of four layers, whose rotary embedding is not scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_attention_bias,
    rope_parameters,
    window_layers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; one with a sliding window holds an OLMo 3."""
    common = {"attention_bias": has_attention_bias(gguf)}
    rope, window = rope_parameters(gguf), gguf.integer("attention.sliding_window", 0)
    if not window:
        return common | {"rope_parameters": rope}
    theta = float(gguf.number("rope.freq_base_swa", rope["rope_theta"]))
    return common | {
        "model_type": "olmo3",
        "sliding_window": window,
        "layer_types": window_layers(gguf, 4),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


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
    gguf: ClassVar[GgufTable | None] = GgufTable(architecture="olmo2", settings=_gguf_settings)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the norm type and the place of the norms."""
        del config
        return {"norm_type": "rms_float32", "input_norms": False, "output_norms": True}


class Olmo3Family(Olmo2Family):
    """Table of `Olmo3ForCausalLM`."""

    model_type = "olmo3"
    title = "OLMo 3"
    architecture = "Olmo3ForCausalLM"
    gguf = None  # OLMo 2's table reads both

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return OLMo 2's settings and the layers with a sliding window."""
        return super().settings(config) | {
            "sliding_window": config.sliding_window,
            "layer_types": tuple(config.layer_types),
        }
