"""Gemma 2, with capped scores, and Gemma 3, with normed q and k and two rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}


class Gemma2Family(Family):
    """Adapter of `Gemma2ForCausalLM`."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(256_000, 2304, 9216, 26, 8, 4, **_GEMMA),
        norms_per_layer=4,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
    modules = {  # noqa: RUF012  # a constant of the class
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Norms around both modules, caps, a scaled embedding, a window in some layers."""
        return {
            "hidden_act": config.hidden_activation,
            "norm_type": "rms_plus_one",
            "attention_scale": config.query_pre_attn_scalar**-0.5,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
            "embedding_scale": config.hidden_size**0.5,
            "sliding_window": config.sliding_window,
            "layer_types": tuple(config.layer_types),
        }

    def faults(self, config: PreTrainedConfig) -> Iterator[str]:
        """Attention to what comes later is another model."""
        if config.use_bidirectional_attention:
            yield "use_bidirectional_attention"


class Gemma3Family(Gemma2Family):
    """Adapter of `Gemma3ForCausalLM`: text only."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(262_208, 2304, 9216, 26, 8, 4, **_GEMMA),
        norms_per_layer=4,
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """As Gemma 2, but its classes do not cap scores whatever the setting says."""
        return super().own_settings(config) | {"attn_logit_softcapping": None}
