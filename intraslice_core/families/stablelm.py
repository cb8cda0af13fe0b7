"""StableLM family: Llama with LayerNorm, partial rotary embedding and, in some, parallel layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    GgufSettings,
    GgufTable,
    has_qkv_bias,
    partial_rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file.

    Layers are parallel if they lack the MLP's norm. llama.cpp ignores the key, which old files
    have for sequential layers, too.
    """
    gguf.skip("use_parallel_residual")
    return {
        "use_qkv_bias": has_qkv_bias(gguf),
        "use_parallel_residual": not gguf.has("ffn_norm.weight"),
        "rope_parameters": partial_rope_parameters(gguf),
    }


class StableLmFamily(Family):
    """Table of `StableLmForCausalLM` (StableLM 2 and 3B)."""

    model_type = "stablelm"
    title = "StableLM"
    architecture = "StableLmForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(50_304, 2560, 6912, 32, 32, 32),
        norm_bias=True,
        attention_bias="use_qkv_bias",
    )
    ignored_settings = frozenset({"head_dim"})
    rotates_partly = True
    gguf = GgufTable(
        architecture="stablelm",
        settings=_gguf_settings,
        norm_eps=(LAYER_NORM_EPS, "layer_norm_eps"),
    )

    def norms_per_layer(self, values: Mapping[str, Any]) -> int:
        """Return 1 for parallel layers, whose modules share a norm, else 2."""
        return 1 if values.get("use_parallel_residual") else 2

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm and its epsilon."""
        return {"norm_type": "layer", "norm_eps": config.layer_norm_eps}

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield LayerNorm on queries and keys: its mean is over dimensions that slicing removes."""
        if config.qk_layernorm:
            yield "qk_layernorm"
