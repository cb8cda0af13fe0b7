"""Gemma families.

Gemma 2 has soft-capped attention scores; Gemma 3 has norms on q and k and two rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}


class Gemma2Family(Family):
    """Table of `Gemma2ForCausalLM`."""

    model_type = "gemma2"
    title = "Gemma 2"
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

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the norm type, soft caps, embedding scale and the layers with a sliding window."""
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

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield bidirectional attention: the engine supports causal models only."""
        if config.use_bidirectional_attention:
            yield "use_bidirectional_attention"


class Gemma3Family(Gemma2Family):
    """Table of `Gemma3ForCausalLM`, the text model."""

    model_type = "gemma3_text"
    title = "Gemma 3"
    architecture = "Gemma3ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(262_208, 2304, 9216, 26, 8, 4, **_GEMMA),
        norms_per_layer=4,
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return Gemma 2's settings without the attention soft cap, which these classes ignore."""
        return super().settings(config) | {"attn_logit_softcapping": None}
