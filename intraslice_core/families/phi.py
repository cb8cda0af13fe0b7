"""Phi families.

Phi 1 to 2 have LayerNorm, biases, an ungated MLP parallel to the attention and partial rotary
embedding. Phi 3 to 4 are Llama with fused projections and, in some models, partial
rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.mistral import window_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the sliding window and the context length before `longrope` scaling."""
        return window_settings(config) | {
            "original_max_position_embeddings": config.original_max_position_embeddings
        }
