"""Qwen families: Qwen 2 with biases on q, k and v, and Qwen 3 with norms on q and k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_attention_bias,
    rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _qwen2_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; llama.cpp's Qwen models have no sliding windows."""
    return {"rope_parameters": rope_parameters(gguf), "use_sliding_window": False}


def _qwen3_gguf(gguf: GgufSettings) -> dict[str, Any]:
    return _qwen2_gguf(gguf) | {"attention_bias": has_attention_bias(gguf)}


class Qwen2Family(Family):
    """Table of `Qwen2ForCausalLM` (Qwen 2 and 2.5)."""

    model_type = "qwen2"
    title = "Qwen 2"
    architecture = "Qwen2ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(151_936, 4096, 22_016, 32, 32, 32),
        attention_bias=True,
    )
    gguf = GgufTable(architecture="qwen2", settings=_qwen2_gguf)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the sliding window and the layers that use it."""
        return {"sliding_window": config.sliding_window, "layer_types": tuple(config.layer_types)}


class Qwen3Family(Qwen2Family):
    """Table of `Qwen3ForCausalLM`; the norms of q and k are part of its facts."""

    model_type = "qwen3"
    title = "Qwen 3"
    architecture = "Qwen3ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(151_936, 4096, 22_016, 32, 32, 32, head_dim=128),
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
    gguf = GgufTable(architecture="qwen3", settings=_qwen3_gguf)
