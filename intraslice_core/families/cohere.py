"""Cohere families: parallel layers with one LayerNorm without bias, scaled logits.

In Cohere 2, layers with full attention have no rotary embedding, the others a sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return Cohere's settings, and the layers with a window, which alone have rotation."""
        layer_types = tuple(config.layer_types)
        return super().settings(config) | {
            "sliding_window": config.sliding_window,
            "layer_types": layer_types,
            "rope_layers": tuple(name == "sliding_attention" for name in layer_types),
        }
