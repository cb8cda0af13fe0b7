"""SmolLM3 family: Llama with some layers without rotary embedding.

SmolLM 1 and 2 are Llamas.
"""

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


_LAYERS_PER_STILL_LAYER = 4
"""Period of the layers without rotary embedding, which llama.cpp has no key for."""


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    period = _LAYERS_PER_STILL_LAYER
    return {
        "attention_bias": has_attention_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "no_rope_layers": [
            int((layer + 1) % period != 0) for layer in range(gguf.integer("block_count"))
        ],
        "rope_parameters": rope_parameters(gguf),
    }


class SmolLM3Family(Family):
    """Table of `SmolLM3ForCausalLM`."""

    model_type = "smollm3"
    title = "SmolLM3"
    architecture = "SmolLM3ForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(128_256, 2048, 11_008, 36, 16, 4, tie_word_embeddings=True),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )
    gguf = GgufTable(architecture="smollm3", settings=_gguf_settings, interleaved=True)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the layers with rotary embedding, 1 in `no_rope_layers`, and with a window."""
        layers = config.num_hidden_layers
        return {
            "rope_layers": tuple(bool(flag) for flag in config.no_rope_layers[:layers]),
            "sliding_window": config.sliding_window,
            "layer_types": tuple(config.layer_types),
        }

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield a list of layers with rotary embedding that is too short."""
        if len(config.no_rope_layers) < config.num_hidden_layers:
            yield f"no_rope_layers of {len(config.no_rope_layers)} entries"
