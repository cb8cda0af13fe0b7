"""Gemma families.

Gemma 2 has soft-capped attention scores; Gemma 3 has norms on q and k and two rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    DEFAULT_THETA,
    GgufSettings,
    GgufTable,
    has_attention_bias,
    head_size,
    rope_parameters,
    window_layers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}


def _gemma2_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; missing ones take llama.cpp's defaults."""
    rope = rope_parameters(gguf)
    if gguf.number("rope.freq_base_swa", rope["rope_theta"]) != rope["rope_theta"]:
        raise gguf.unsupported("rope.freq_base_swa", gguf.get("rope.freq_base_swa"))
    return {
        "attention_bias": has_attention_bias(gguf),
        "query_pre_attn_scalar": _query_scalar(gguf, largest_model_layers=46),
        "attn_logit_softcapping": float(gguf.number("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": float(gguf.number("final_logit_softcapping", 30.0)),
        "sliding_window": gguf.integer("attention.sliding_window", 4096),
        "layer_types": window_layers(gguf, 2),
        "rope_parameters": rope,
    }


def _gemma3_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; without a window all layers have full attention.

    transformers requires a window even then, and ignores it.
    """
    window = gguf.integer("attention.sliding_window", 0)
    local_theta = float(gguf.number("rope.freq_base_swa", DEFAULT_THETA))
    types = window_layers(gguf, 6)
    return {
        "attention_bias": has_attention_bias(gguf),
        "query_pre_attn_scalar": _query_scalar(gguf, largest_model_layers=62),
        "final_logit_softcapping": gguf.number("final_logit_softcapping", 0.0) or None,
        "sliding_window": window or gguf.integer("context_length"),
        "layer_types": types if window else ["full_attention"] * len(types),
        "rope_parameters": {
            "full_attention": rope_parameters(gguf),
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }


def _query_scalar(gguf: GgufSettings, *, largest_model_layers: int) -> int:
    """Return the number whose inverse root scales the scores.

    It has no key. llama.cpp knows the 27B models, the only ones that do not use the head size, by
    their number of layers.
    """
    if gguf.integer("block_count") == largest_model_layers:
        hidden: int = gguf.integer("embedding_length")
        return hidden // int(gguf.integer("attention.head_count"))
    return head_size(gguf)


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
    gguf: ClassVar[GgufTable | None] = GgufTable(
        architecture="gemma2", settings=_gemma2_gguf, norm_offset=1.0
    )

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
    gguf = GgufTable(architecture="gemma3", settings=_gemma3_gguf, norm_offset=1.0)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return Gemma 2's settings without the attention soft cap, which these classes ignore."""
        return super().settings(config) | {"attn_logit_softcapping": None}
