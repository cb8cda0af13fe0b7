"""Nemotron family: LayerNorm with 1 + weight, a plain MLP with squared ReLU, partial rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    GgufSettings,
    GgufTable,
    has_attention_bias,
    has_mlp_bias,
    partial_rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    gguf.skip(RMS_NORM_EPS)  # the same number under the name that the converter shares
    return {
        "attention_bias": has_attention_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "rope_parameters": partial_rope_parameters(gguf),
    }


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
    gguf = GgufTable(
        architecture="nemotron",
        settings=_gguf_settings,
        norm_eps=(LAYER_NORM_EPS, "norm_eps"),
        norm_offset=1.0,
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm with 1 + weight, and its epsilon."""
        return {"norm_type": "layer_plus_one", "norm_eps": config.norm_eps}
