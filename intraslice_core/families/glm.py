"""GLM families: interleaved rotary embedding of half of each head, fused gate and up projections.

GLM-4-0414 models (`glm4`) have norms on outputs, too; GLM-4 of 2024 (`glm`) has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_qkv_bias,
    partial_rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_DEFAULTS = default_sizes(151_552, 4096, 13_696, 40, 32, 2, head_dim=128, attention_bias=True)


_FUSED = {"ffn_up": ("ffn_gate", "ffn_up")}


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    return {
        "attention_bias": has_qkv_bias(gguf),
        "rope_parameters": partial_rope_parameters(gguf),
    }


class GlmFamily(Family):
    """Table of `GlmForCausalLM`."""

    model_type = "glm"
    title = "GLM-4"
    architecture = "GlmForCausalLM"
    facts = FamilyFacts(defaults=_DEFAULTS, attention_bias="attention_bias")
    fused = {"mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}  # noqa: RUF012  # a constant
    rotates_partly = True
    interleaved_rotary = True
    gguf: ClassVar[GgufTable | None] = GgufTable(
        architecture="chatglm", settings=_gguf_settings, fused=_FUSED
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return no settings: all canonical defaults apply."""
        del config
        return {}


class Glm4Family(GlmFamily):
    """Table of `Glm4ForCausalLM`."""

    model_type = "glm4"
    title = "GLM-4-0414"
    architecture = "Glm4ForCausalLM"
    facts = FamilyFacts(defaults=_DEFAULTS, norms_per_layer=4, attention_bias="attention_bias")
    modules = {  # noqa: RUF012  # a constant of the class
        "attention_output_norm": "post_self_attn_layernorm",
        "mlp_output_norm": "post_mlp_layernorm",
    }
    gguf = GgufTable(architecture="glm4", settings=_gguf_settings, fused=_FUSED)
