"""Phi families.

Phi 1 to 2 have LayerNorm, biases, an ungated MLP parallel to the attention and partial rotary
embedding. Phi 3 to 4 are Llama with fused projections and, in some models, partial
rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    GgufSettings,
    GgufTable,
    partial_rope_parameters,
)
from intraslice_core.families.mistral import window_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _phi2_gguf(gguf: GgufSettings) -> dict[str, Any]:
    return {"hidden_act": "gelu_new", "rope_parameters": partial_rope_parameters(gguf)}


def _phi3_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file.

    The window is the one that the model was trained with; llama.cpp reads it but does not use it.
    """
    rope = partial_rope_parameters(gguf)
    if rope["rope_type"] not in ("default", "longrope"):
        raise gguf.unsupported("rope.scaling.type", repr(rope["rope_type"]))
    context = gguf.integer("context_length")
    return {
        "sliding_window": gguf.integer("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": gguf.integer(
            "rope.scaling.original_context_length", context
        ),
        "rope_parameters": rope,
    }


class PhiFamily(Family):
    """Table of `PhiForCausalLM` (Phi-1, 1.5 and 2)."""

    model_type = "phi"
    title = "Phi"
    architecture = "PhiForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(51_200, 2048, 8192, 24, 32, None),
        mlp_projections=2,
        norms_per_layer=1,
        norm_bias=True,
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
    )
    modules = {  # noqa: RUF012  # a constant of the class
        "self_attn.o_proj": "self_attn.dense",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "model.norm": "model.final_layernorm",
    }
    rotates_partly = True
    gguf = GgufTable(
        architecture="phi2",
        settings=_phi2_gguf,
        norm_eps=(LAYER_NORM_EPS, "layer_norm_eps"),
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm and its epsilon."""
        return {"norm_type": "layer", "norm_eps": config.layer_norm_eps}

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield LayerNorm on queries and keys: its mean is over dimensions that slicing removes."""
        if config.qk_layernorm:
            yield "qk_layernorm"


class Phi3Family(Family):
    """Table of `Phi3ForCausalLM` (Phi-3, 3.5, 4 and 4-mini)."""

    model_type = "phi3"
    title = "Phi 3"
    architecture = "Phi3ForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(32_064, 3072, 8192, 32, 32, None))
    fused = {  # noqa: RUF012  # a constant of the class
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }
    rotates_partly = True
    gguf = GgufTable(
        architecture="phi3", settings=_phi3_gguf, fused={"ffn_up": ("ffn_gate", "ffn_up")}
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the sliding window and the context length before `longrope` scaling."""
        return window_settings(config) | {
            "original_max_position_embeddings": config.original_max_position_embeddings
        }
