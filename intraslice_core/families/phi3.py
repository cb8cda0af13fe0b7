"""Phi 3 to 4: a Llama with fused projections, a window, and heads that may rotate partly."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from intraslice_core.families.family import Family
from intraslice_core.families.mistral import window_everywhere


class Phi3Family(Family):
    """Adapter of `Phi3ForCausalLM` (Phi-3, 3.5, 4 and 4-mini)."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
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
