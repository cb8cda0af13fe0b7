"""Llama family: rotary grouped-query attention and a gated MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_attention_bias,
    has_mlp_bias,
    rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file; those of Mistral have this architecture, too.

    A sliding window makes the model a Mistral, whose classes have windows.
    """
    window = gguf.integer("attention.sliding_window", 0)
    if window:
        return {
            "model_type": "mistral",
            "sliding_window": window,
            "rope_parameters": rope_parameters(gguf),
        }
    return {
        "attention_bias": has_attention_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "rope_parameters": rope_parameters(gguf),
    }


class LlamaFamily(Family):
    """Table of `LlamaForCausalLM`, whose settings are the canonical defaults."""

    model_type = "llama"
    title = "Llama"
    architecture = "LlamaForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(32_000, 4096, 11_008, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )
    gguf = GgufTable(architecture="llama", settings=gguf_settings, interleaved=True)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return no settings: all canonical defaults apply."""
        del config
        return {}

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield a sliding window: Llama's classes ignore it, but a derived model may need it."""
        if getattr(config, "sliding_window", None) is not None:
            yield "sliding_window"
