"""Tiny GGUF files of the families beside Llama, Qwen, Phi and Gemma.

The metadata are those that `conversion/*.py` of llama.cpp writes beyond the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """Tiny model, metadata beyond its sizes, and rotary tables."""

    architecture: str
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tables: Mapping[str, list[float]] = field(default_factory=dict)
    change: Any = None
    variant: str | None = None
    """Name of the tiny model, if it is not the architecture's."""


ORIGINAL = "rope.scaling.original_context_length"
THETA = {"rope.freq_base": 10_000.0}
LLAMA = {"rope.dimension_count": 16, "vocab_size": 264, **THETA}
LONG = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, ORIGINAL: 16}
HALF_ROTATING = {"rope.dimension_count": 8, **THETA}
GRANITE = {"attention.scale": 0.15, "embedding_scale": 3.0, "residual_scale": 0.4}
MAMBA = {"conv_kernel": 4, "state_size": 128, "group_count": 1, "inner_size": 64}
COHERE = {"logit_scale": 0.25, "rope.scaling.type": "none"}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILY_CASES = {
    "olmo2": Case("olmo2", {}, {"rope.freq_base": 5e5}),
    "olmo3": Case(
        "olmo2",
        {"layer_types": MIXED_LAYERS},
        THETA
        | YARN
        | {"rope.freq_base_swa": 10_000.0, "attention.sliding_window": 6}
        | {"attention.sliding_window_pattern": [True, False, True]},
        variant="olmo3",
    ),
    "smollm3": Case(
        "smollm3",
        {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "attention_bias": False},
        LLAMA | {"rope.freq_base": 2e6},
    ),
    "granite": Case("granite", {}, LLAMA | GRANITE | {"logit_scale": 4.0}),
    "granite4": Case(
        "granite",
        {"attention_bias": False},
        LLAMA
        | GRANITE
        | {"logit_scale": 4.0, "expert_count": 0, "expert_used_count": 0}
        | {"expert_shared_feed_forward_length": 96, "rope.scaling.finetuned": True}
        | {"attention.head_count_kv": [2, 2, 2], "ssm.time_step_rank": 8}
        | {f"ssm.{key}": value for key, value in MAMBA.items()},
    ),
    "glm": Case("glm", {"head_dim": 16, "partial_rotary_factor": 0.5}, HALF_ROTATING),
    "glm4": Case("glm4", {}, HALF_ROTATING),
    "cohere": Case("cohere", {"tie_word_embeddings": True, "logit_scale": 0.25}, COHERE | THETA),
    "cohere2": Case(
        "cohere2",
        {"attention_bias": False, "num_hidden_layers": 4, "sliding_window_pattern": 4},
        COHERE
        | THETA
        | {"attention.sliding_window": 6, "rope.dimension_count": 16, "vocab_size": 264},
    ),
    "starcoder2": Case("starcoder2", {"sliding_window": None}, THETA),
    "stablelm": Case(
        "stablelm",
        {"partial_rotary_factor": 0.25},
        {"rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "stablelm_parallel": Case(
        "stablelm",
        {},
        {"rope.dimension_count": 8, "use_parallel_residual": True},
        variant="stablelm_parallel",
    ),
    "gpt_neox": Case(
        "gpt_neox",
        {"rotary_pct": 0.25, "intermediate_size": 256},
        {"rope.dimension_count": 4, "use_parallel_residual": True, "attention.head_count_kv": None},
    ),
    "gpt_neox_sequential": Case(
        "gpt_neox",
        {"attention_bias": True, "tie_word_embeddings": False},
        {"rope.dimension_count": 16, "use_parallel_residual": False}
        | {"attention.head_count_kv": None},
        variant="gpt_neox_sequential",
    ),
    "nemotron": Case(
        "nemotron", {}, HALF_ROTATING | {"rope.scaling.type": "none", "vocab_size": 264}
    ),
    "exaone4": Case(
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 3},
        THETA | {"vocab_size": 264},
    ),
    "seed_oss": Case("seed_oss", {"head_dim": 32}, THETA),
    "ministral3": Case(
        "ministral3",
        {},
        LLAMA
        | YARN
        | {ORIGINAL: 8, "rope.scaling.yarn_log_multiplier": 0.7}
        | {"attention.temperature_scale": 0.5},
    ),
    "mistral3_without_scaled_queries": Case("ministral3", {"head_dim": 16}, LLAMA, variant="llama"),
}
