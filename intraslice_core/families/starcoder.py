"""StarCoder 2 family: Mistral with LayerNorm, biases and a plain MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    GgufSettings,
    GgufTable,
    has_attention_bias,
    has_mlp_bias,
    rope_parameters,
)
from intraslice_core.families.mistral import window_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; llama.cpp's StarCoder 2 has no sliding window."""
    return {
        "use_bias": has_attention_bias(gguf) or has_mlp_bias(gguf),
        "sliding_window": None,
        "rope_parameters": rope_parameters(gguf),
    }


class Starcoder2Family(Family):
    """Table of `Starcoder2ForCausalLM`."""

    model_type = "starcoder2"
    title = "StarCoder 2"
    architecture = "Starcoder2ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(
            49_152, 3072, 12_288, 30, 24, 2, tie_word_embeddings=True, use_bias=True
        ),
        mlp_projections=2,
        norm_bias=True,
        attention_bias="use_bias",
        attention_output_bias="use_bias",
        mlp_bias="use_bias",
    )
    modules = {  # noqa: RUF012  # a constant of the class
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    gguf = GgufTable(
        architecture="starcoder2",
        settings=_gguf_settings,
        norm_eps=(LAYER_NORM_EPS, "norm_epsilon"),
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm and the sliding window of all layers."""
        return window_settings(config) | {"norm_type": "layer", "norm_eps": config.norm_epsilon}
