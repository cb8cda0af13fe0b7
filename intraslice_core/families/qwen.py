"""Qwen 2, with biased q, k and v, and Qwen 3, with normed q and k."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from intraslice_core.families.family import Family


class Qwen2Family(Family):
    """Adapter of `Qwen2ForCausalLM` (2 and 2.5)."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Layers with and without a window."""
        return {"sliding_window": config.sliding_window, "layer_types": tuple(config.layer_types)}


class Qwen3Family(Qwen2Family):
    """Adapter of `Qwen3ForCausalLM`; the norms of q and k are in its geometry."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
