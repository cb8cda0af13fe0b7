"""Cohere families: parallel layers with one LayerNorm without bias, scaled logits.

In Cohere 2, layers with full attention have no rotary embedding, the others a sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    LAYER_NORM_EPS,
    GgufSettings,
    GgufTable,
    has_attention_bias,
    rope_parameters,
    window_layers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _cohere_gguf(gguf: GgufSettings) -> dict[str, Any]:
    return {
        "attention_bias": has_attention_bias(gguf),
        "logit_scale": float(gguf.number("logit_scale", 0.0)) or 1.0,  # llama.cpp: 0 is none
        "rope_parameters": rope_parameters(gguf),
    }


def _cohere2_gguf(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file.

    Raises:
        UnsupportedArchitectureError: if the layers with a window have a rotary base of their own.
    """
    settings = _cohere_gguf(gguf)
    theta = settings["rope_parameters"]["rope_theta"]
    if gguf.number("rope.freq_base_swa", theta) != theta:
        raise gguf.unsupported("rope.freq_base_swa", gguf.get("rope.freq_base_swa"))
    return settings | {
        "sliding_window": gguf.integer("attention.sliding_window"),
        "layer_types": window_layers(gguf, 4),
    }


class CohereFamily(Family):
    """Table of `CohereForCausalLM` (Command R, Aya 23)."""

    model_type = "cohere"
    title = "Cohere"
    architecture = "CohereForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(256_000, 8192, 22_528, 40, 64, None, tie_word_embeddings=True),
        norms_per_layer=1,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
    interleaved_rotary = True
    gguf: ClassVar[GgufTable | None] = GgufTable(
        architecture="command-r",
        settings=_cohere_gguf,
        norm_eps=(LAYER_NORM_EPS, "layer_norm_eps"),
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm without bias, its epsilon, and the factor on the logits."""
        return {
            "norm_type": "layer_without_bias",
            "norm_eps": config.layer_norm_eps,
            "logit_scale": config.logit_scale,
        }

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield LayerNorm on queries and keys: its mean is over dimensions that slicing removes.

        Logits without a factor, which the configuration allows, do not run in transformers.
        """
        if getattr(config, "use_qk_norm", False):
            yield "use_qk_norm"
        if config.logit_scale is None:
            yield "logit_scale None"


class Cohere2Family(CohereFamily):
    """Table of `Cohere2ForCausalLM` (Command R7B, Command A, Aya Expanse 2)."""

    model_type = "cohere2"
    title = "Cohere 2"
    architecture = "Cohere2ForCausalLM"
    ignored_settings = frozenset({"head_dim"})
    gguf = GgufTable(
        architecture="cohere2",
        settings=_cohere2_gguf,
        norm_eps=(LAYER_NORM_EPS, "layer_norm_eps"),
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return Cohere's settings, and the layers with a window, which alone have rotation."""
        layer_types = tuple(config.layer_types)
        return super().settings(config) | {
            "sliding_window": config.sliding_window,
            "layer_types": layer_types,
            "rope_layers": tuple(name == "sliding_attention" for name in layer_types),
        }
