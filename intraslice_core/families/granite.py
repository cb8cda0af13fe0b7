"""Granite families: Llama with multipliers of embeddings, residuals, scores and logits.

Granite 4 models without experts and without Mamba layers are the same with other names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import (
    GgufSettings,
    GgufTable,
    has_attention_bias,
    has_mlp_bias,
    head_size,
    rope_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_MAMBA = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")
"""Settings of Mamba layers; their tensors have no place, so there are no such layers."""


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file: Granite 3, or Granite 4 with attention layers only.

    Raises:
        UnsupportedArchitectureError: if no layer has rotary embedding.
    """
    if gguf.get("rope.scaling.finetuned", True) is not True:
        raise gguf.unsupported("rope.scaling.finetuned", False)
    gguf.skip("expert_shared_feed_forward_length", *(f"ssm.{name}" for name in _MAMBA))
    # llama.cpp takes 0 for a setting that is missing.
    scale = float(gguf.number("attention.scale", 0.0))
    return {
        "attention_bias": has_attention_bias(gguf),
        "mlp_bias": has_mlp_bias(gguf),
        "embedding_multiplier": float(gguf.number("embedding_scale", 0.0)) or 1.0,
        "residual_multiplier": float(gguf.number("residual_scale", 0.0)) or 1.0,
        "attention_multiplier": scale or head_size(gguf) ** -0.5,
        "logits_scaling": float(gguf.number("logit_scale")),
        "rope_parameters": rope_parameters(gguf),
    }


class GraniteFamily(Family):
    """Table of `GraniteForCausalLM` (Granite 3)."""

    model_type = "granite"
    title = "Granite 3"
    architecture = "GraniteForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(32_000, 4096, 11_008, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    )
    gguf: ClassVar[GgufTable | None] = GgufTable(
        architecture="granite", settings=_gguf_settings, interleaved=True
    )

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the four multipliers; the logits are divided by theirs."""
        return {
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "attention_scale": config.attention_multiplier,
            "logit_scale": 1.0 / config.logits_scaling if config.logits_scaling else 1.0,
        }

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield multipliers of zero, by which the engine would divide."""
        for setting in ("residual_multiplier", "logits_scaling"):
            if not getattr(config, setting):
                yield f"{setting} {getattr(config, setting)}"


class Granite4Family(GraniteFamily):
    """Table of `GraniteMoeHybridForCausalLM` (Granite 4) without experts and Mamba layers."""

    model_type = "granitemoehybrid"
    title = "Granite 4 (dense, attention only)"
    architecture = "GraniteMoeHybridForCausalLM"
    gguf = None  # the files of these models are those of Granite 3
    facts = FamilyFacts(
        defaults=default_sizes(32_000, 4096, 1024, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    )
    modules = {"mlp.down_proj": "shared_mlp.output_linear"}  # noqa: RUF012  # a constant
    fused = {  # noqa: RUF012  # a constant of the class
        "shared_mlp.input_linear": ("mlp.gate_proj", "mlp.up_proj")
    }
    # Without experts, the MLP is the one that experts would share.
    setting_names = {  # noqa: RUF012  # a constant of the class
        "intermediate_size": "shared_intermediate_size"
    }

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the multipliers, and the layers with rotary embedding: all or none."""
        rotates = config.position_embedding_type == "rope"
        return super().settings(config) | {
            "layer_types": tuple(config.layer_types),
            "rope_layers": None if rotates else (False,) * config.num_hidden_layers,
        }

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield experts; Mamba layers are rejected by their type."""
        yield from super().unsupported_settings(config)
        if config.num_local_experts:
            yield f"num_local_experts {config.num_local_experts}"
