"""GPT-NeoX family: fused projections, LayerNorm, partial rotation, parallel layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    GgufSettings,
    GgufTable,
    has_attention_bias,
    partial_rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file.

    The file does not name the activation. It is that of Pythia and Dolly; llama.cpp computes the
    tanh approximation for all models.
    """
    return {
        "hidden_act": "gelu",
        "attention_bias": has_attention_bias(gguf),
        "use_parallel_residual": bool(gguf.get("use_parallel_residual", True)),
        "rope_parameters": partial_rope_parameters(gguf),
    }


class GPTNeoXFamily(Family):
    """Table of `GPTNeoXForCausalLM` (GPT-NeoX 20B, Pythia, Dolly)."""

    model_type = "gpt_neox"
    title = "GPT-NeoX, Pythia"
    architecture = "GPTNeoXForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(50_432, 6144, 24_576, 44, 64, None, attention_bias=True),
        mlp_projections=2,
        norm_bias=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias=True,
    )
    ignored_settings = frozenset({"head_dim", "num_key_value_heads"})
    layers = "gpt_neox.layers"
    modules = {  # noqa: RUF012  # a constant of the class
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
    }
    fused = {  # noqa: RUF012  # a constant of the class
        "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    }
    fused_per_head = True
    former_names = {"embed_out.": "lm_head."}  # noqa: RUF012  # a constant of the class
    rotates_partly = True
    gguf = GgufTable(
        architecture="gptneox",
        settings=_gguf_settings,
        norm_eps=(LAYER_NORM_EPS, "layer_norm_eps"),
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm and whether the two modules, each with its norm, are parallel."""
        return {
            "norm_type": "layer",
            "norm_eps": config.layer_norm_eps,
            "parallel_block": config.use_parallel_residual,
            "separate_mlp_norm": config.use_parallel_residual,
        }
