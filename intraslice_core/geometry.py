"""A dense model's dimensions from config.json alone, for those who must not load torch.

One row a family: what its configuration class takes where config.json is silent, and what its
classes have besides the projections. A flag is the name of a setting where the setting decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intraslice_core.plan import ModelGeometry

Flag = bool | str


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """What a family has, dense."""

    defaults: Mapping[str, Any]
    mlp_projections: int = 3
    norms_per_layer: int = 2
    norm_bias: bool = False
    qk_norm: bool = False
    attention_bias: Flag = False
    attention_output_bias: Flag = False
    mlp_bias: Flag = False
    lm_head_bias: Flag = False


def _sizes(  # a row of the table
    vocab: int, hidden: int, width: int, layers: int, heads: int, groups: int | None, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
        **more,
    }


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}

FAMILY_FACTS: dict[str, FamilyFacts] = {
    "llama": FamilyFacts(
        defaults=_sizes(32_000, 4096, 11_008, 32, 32, None),
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "mistral": FamilyFacts(defaults=_sizes(32_000, 4096, 14_336, 32, 32, 8)),
    "qwen2": FamilyFacts(
        defaults=_sizes(151_936, 4096, 22_016, 32, 32, 32),
        attention_bias=True,
    ),
    "qwen3": FamilyFacts(
        defaults=_sizes(151_936, 4096, 22_016, 32, 32, 32, head_dim=128),
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    ),
    "phi": FamilyFacts(
        defaults=_sizes(51_200, 2048, 8192, 24, 32, None),
        mlp_projections=2,
        norms_per_layer=1,
        norm_bias=True,
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
    ),
    "phi3": FamilyFacts(defaults=_sizes(32_064, 3072, 8192, 32, 32, None)),
    "gemma2": FamilyFacts(
        defaults=_sizes(256_000, 2304, 9216, 26, 8, 4, **_GEMMA),
        norms_per_layer=4,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    ),
    "gemma3_text": FamilyFacts(
        defaults=_sizes(262_208, 2304, 9216, 26, 8, 4, **_GEMMA),
        norms_per_layer=4,
        qk_norm=True,
        attention_bias="attention_bias",
        attention_output_bias="attention_bias",
    ),
}
"""By `model_type`."""


def dense_geometry(model_type: str, settings: Mapping[str, Any]) -> ModelGeometry:
    """The dimensions that a configuration of a supported family describes.

    Args:
        model_type: one of `FAMILY_FACTS`.
        settings: named as in config.json; what is absent has its family's default.

    Raises:
        ValidationError: of pydantic, if a size is missing or impossible.
    """
    facts = FAMILY_FACTS[model_type]
    said = {**facts.defaults, **settings}
    heads, hidden = said["num_attention_heads"], said["hidden_size"]
    head_dim = said.get("head_dim")
    if head_dim is None and type(heads) is int and type(hidden) is int and heads > 0:
        head_dim = hidden // heads

    def decided(flag: Flag) -> bool:
        return bool(said.get(flag)) if isinstance(flag, str) else flag

    return ModelGeometry(
        num_hidden_layers=said["num_hidden_layers"],
        hidden_size=hidden,
        intermediate_size=said["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=said["num_key_value_heads"] or heads,
        head_dim=head_dim,
        vocab_size=said["vocab_size"],
        tie_word_embeddings=said["tie_word_embeddings"] or False,
        mlp_projections=facts.mlp_projections,
        norms_per_layer=facts.norms_per_layer,
        norm_bias=facts.norm_bias,
        qk_norm=facts.qk_norm,
        attention_bias=decided(facts.attention_bias),
        attention_output_bias=decided(facts.attention_output_bias),
        mlp_bias=decided(facts.mlp_bias),
        lm_head_bias=decided(facts.lm_head_bias),
    )
