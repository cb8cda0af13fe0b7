"""Nemotron family: LayerNorm with 1 + weight, a plain MLP with squared ReLU, partial rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class NemotronFamily(Family):
    """Table of `NemotronForCausalLM` (Nemotron 3 and 4, Minitron)."""

    model_type = "nemotron"
    title = "Nemotron"
    architecture = "NemotronForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(256_000, 6144, 24_576, 32, 48, None),
        mlp_projections=2,
        norm_bias=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )
    rotates_partly = True

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm with 1 + weight, and its epsilon."""
        return {"norm_type": "layer_plus_one", "norm_eps": config.norm_eps}
