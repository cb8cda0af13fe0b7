"""Seed-OSS family: Llama with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return no settings: all canonical defaults apply."""
        del config
        return {}
