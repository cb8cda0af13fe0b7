"""Seed-OSS family: Llama with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_mlp_bias,
    has_output_bias,
    has_qkv_bias,
    rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    return {
        "attention_bias": has_qkv_bias(gguf),
        "attention_out_bias": has_output_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "rope_parameters": rope_parameters(gguf),
    }


class SeedOssFamily(Family):
    """Table of `SeedOssForCausalLM`."""

    model_type = "seed_oss"
    title = "Seed-OSS"
    architecture = "SeedOssForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(155_136, 4096, 27_648, 64, 80, 8, head_dim=128, attention_bias=True),
        attention_bias="attention_bias",
        attention_output_bias="attention_out_bias",
        mlp_bias="mlp_bias",
    )
    gguf = GgufTable(
        architecture="seed_oss",
        settings=_gguf_settings,
        modules={"post_attention_layernorm": "post_attention_norm"},
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return no settings: all canonical defaults apply."""
        del config
        return {}
