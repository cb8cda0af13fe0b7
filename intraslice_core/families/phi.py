"""Phi 1 to 2: LayerNorm, biases, a plain MLP beside the attention, heads that rotate partly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.mistral import window_everywhere

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class PhiFamily(Family):
    """Adapter of `PhiForCausalLM`."""

    model_type = "phi"
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

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """LayerNorm."""
        return {"norm_type": "layer", "norm_eps": config.layer_norm_eps}

    def faults(self, config: PreTrainedConfig) -> Iterator[str]:
        """A LayerNorm on queries and keys subtracts a mean over dimensions that would go."""
        if config.qk_layernorm:
            yield "qk_layernorm"


class Phi3Family(Family):
    """Adapter of `Phi3ForCausalLM` (Phi-3, 3.5, 4 and 4-mini)."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(32_064, 3072, 8192, 32, 32, None))
    fused = {  # noqa: RUF012  # a constant of the class
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }
    rotates_partly = True

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The window, and the length that `longrope` was trained at."""
        return window_everywhere(config) | {
            "original_max_position_embeddings": config.original_max_position_embeddings
        }
