"""Llama: rotary, grouped-query attention and a gated MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from intraslice_core.families.family import Family


class LlamaFamily(Family):
    """Adapter of `LlamaForCausalLM`, whose settings are the canonical defaults."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"

    def own_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Nothing of its own."""
        del config
        return {}

    def faults(self, config: PreTrainedConfig) -> Iterator[str]:
        """Llama's classes ignore a window that a derived model may need."""
        if getattr(config, "sliding_window", None) is not None:
            yield "sliding_window"
