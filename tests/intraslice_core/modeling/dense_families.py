"""Tiny random dense models of every family, and their weights by canonical names.

The mapping is written from transformers' modeling code alone. It shares nothing with the engine's
family adapters, which it serves to check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from intraslice_core.modeling import IntraSliceForCausalLM, intraslice_config

LAYERS, HEADS, GROUPS, WIDTH = 3, 4, 2, 24
VOCAB_SIZE = 61
WINDOW = 5
"""Sliding window, shorter than every sequence of the tests."""
ORIGINAL_LENGTH = 16
"""Original length of scaled rotary embeddings; the tests use shorter and longer sequences."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a layer as expected by `intraslice_config`."""

    num_attention_heads: int = HEADS
    num_key_value_heads: int = GROUPS
    qk_head_dim: int
    v_head_dim: int
    intermediate_size: int = WIDTH
    residual: None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Dense configuration and its canonical form."""

    config: PreTrainedConfig
    head_dim: int
    settings: dict[str, Any] = field(default_factory=dict)
    canonical: Callable[[Tensors, Family], Tensors]
    groups: int = GROUPS
    rotating: int | None = None
    """Dimensions of a head with rotary embedding; None means all."""

    @property
    def sdpa(self) -> bool:
        """Return True if SDPA supports the family."""
        return "attn_logit_softcapping" not in self.settings

    @property
    def implementations(self) -> list[str]:
        return ["eager", "sdpa"] if self.sdpa else ["eager"]


def _dimensions(head_dim: int, *, hidden: int = 32, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "head_dim": head_dim,
    } | more


def _per_group(tensors: Tensors, family: Family) -> Tensors:
    """Repeat query and key norms for every KV head; the names are canonical already."""
    return {
        name: tensor.repeat(GROUPS) if name.endswith(("q_norm.weight", "k_norm.weight")) else tensor
        for name, tensor in tensors.items()
    }


def _gemma(tensors: Tensors, family: Family) -> Tensors:
    renamed = {
        "post_attention_layernorm": "attention_output_norm",
        "pre_feedforward_layernorm": "post_attention_layernorm",
        "post_feedforward_layernorm": "mlp_output_norm",
    }
    result = {}
    for name, tensor in _per_group(tensors, family).items():
        parts = [renamed.get(part, part) for part in name.split(".")]
        result[".".join(parts)] = tensor
    return result


def _half_split(rows: Tensor, family: Family) -> Tensor:
    """Reorder rows of query or key heads from [first | second | still] to the canonical order."""
    rotating = family.head_dim if family.rotating is None else family.rotating
    first, second, still = rows.unflatten(0, (-1, family.head_dim)).split(
        [rotating // 2, rotating // 2, family.head_dim - rotating], dim=1
    )
    still_first, still_second = still.chunk(2, dim=1)
    return torch.cat((first, still_first, second, still_second), dim=1).flatten(0, 1)


def _phi(tensors: Tensors, family: Family) -> Tensors:
    renamed = {"dense": "o_proj", "fc1": "up_proj", "fc2": "down_proj", "final_layernorm": "norm"}
    result = {}
    for name, tensor in tensors.items():
        parts = [renamed.get(part, part) for part in name.split(".")]
        rotated = "q_proj" in parts or "k_proj" in parts
        result[".".join(parts)] = _half_split(tensor, family) if rotated else tensor
    return result


def _phi3(tensors: Tensors, family: Family) -> Tensors:
    result = {}
    keys = GROUPS * family.head_dim
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            query, key, value = tensor.split([HEADS * family.head_dim, keys, keys])
            result[name.replace("qkv", "q")] = _half_split(query, family)
            result[name.replace("qkv", "k")] = _half_split(key, family)
            result[name.replace("qkv", "v")] = value
        elif "gate_up_proj" in name:
            gate, up = tensor.chunk(2)
            result[name.replace("gate_up", "gate")] = gate
            result[name.replace("gate_up", "up")] = up
        else:
            result[name] = tensor
    return result


def _llama(max_position_embeddings: int = 64, **rope: Any) -> Family:
    return Family(
        config=LlamaConfig(
            **_dimensions(12, max_position_embeddings=max_position_embeddings),
            rope_parameters={"rope_theta": 10_000.0} | rope if rope else None,
            attention_bias=True,
            mlp_bias=True,
        ),
        head_dim=12,
        settings={"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
        canonical=_per_group,
    )


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [2.0 + 0.3 * pair for pair in range(pairs)],
        "original_max_position_embeddings": ORIGINAL_LENGTH,
    }


def _mistral() -> Family:
    return Family(
        config=MistralConfig(**_dimensions(20), sliding_window=WINDOW, tie_word_embeddings=True),
        head_dim=20,
        settings={"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * LAYERS},
        canonical=_per_group,
    )


def _qwen2() -> Family:
    return Family(
        config=Qwen2Config(
            **_dimensions(12, hidden=48),
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
        ),
        head_dim=12,
        settings={
            "attention_bias": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
        canonical=_per_group,
    )


def _qwen3() -> Family:
    return Family(
        config=Qwen3Config(**_dimensions(20), attention_bias=True),
        head_dim=20,
        settings={"attention_bias": True, "attention_output_bias": True, "qk_norm": True},
        canonical=_per_group,
    )


def _phi2() -> Family:
    dimensions = _dimensions(20, hidden=80)
    del dimensions["head_dim"]
    return Family(
        config=PhiConfig(**dimensions, partial_rotary_factor=0.4, layer_norm_eps=1e-4),
        head_dim=20,
        rotating=8,
        settings={
            "norm_type": "layer",
            "norm_eps": 1e-4,
            "gated_mlp": False,
            "parallel_block": True,
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
            "lm_head_bias": True,
        },
        canonical=_phi,
    )


def _phi3_mini() -> Family:
    dimensions = _dimensions(12, hidden=48)
    del dimensions["head_dim"]
    return Family(
        config=Phi3Config(**dimensions, sliding_window=WINDOW),
        head_dim=12,
        settings={
            "norm_eps": 1e-5,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention"] * LAYERS,
        },
        canonical=_phi3,
    )


def _phi4_mini() -> Family:
    dimensions = _dimensions(16, hidden=64)
    del dimensions["head_dim"]
    return Family(
        config=Phi3Config(
            **dimensions,
            partial_rotary_factor=0.75,
            rope_parameters=_longrope(6),
            original_max_position_embeddings=ORIGINAL_LENGTH,
            tie_word_embeddings=True,
        ),
        head_dim=16,
        rotating=12,
        settings={"norm_eps": 1e-5},
        canonical=_phi3,
    )


def _gemma2() -> Family:
    return Family(
        config=Gemma2Config(
            **_dimensions(12),
            query_pre_attn_scalar=10,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            sliding_window=WINDOW,
            attention_bias=True,
        ),
        head_dim=12,
        settings={
            "norm_type": "rms_plus_one",
            "output_norms": True,
            "attention_bias": True,
            "attention_output_bias": True,
            "attention_scale": 10**-0.5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "embedding_scale": 32**0.5,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        canonical=_gemma,
    )


def _gemma3() -> Family:
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    return Family(
        config=Gemma3TextConfig(
            **_dimensions(20),
            query_pre_attn_scalar=15,
            final_logit_softcapping=4.0,
            sliding_window=WINDOW,
            layer_types=types,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        head_dim=20,
        settings={
            "norm_type": "rms_plus_one",
            "output_norms": True,
            "qk_norm": True,
            "attention_scale": 15**-0.5,
            "final_logit_softcapping": 4.0,
            "embedding_scale": 32**0.5,
            "sliding_window": WINDOW,
            "layer_types": types,
        },
        canonical=_gemma,
    )


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
}


FAMILIES: dict[str, Callable[[], Family]] = {
    "llama": _llama,
    "llama3_rope": lambda: _llama(**_LLAMA3),
    "linear_rope": lambda: _llama(rope_type="linear", factor=2.0),
    # Its frequencies change once a sequence is longer than the positions of the model.
    "dynamic_rope": lambda: _llama(ORIGINAL_LENGTH, rope_type="dynamic", factor=2.0),
    "yarn_rope": lambda: _llama(**_YARN),
    "long_rope": lambda: _llama(**_longrope(6), factor=4.0),
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi": _phi2,
    "phi3": _phi3_mini,
    "phi4_mini": _phi4_mini,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}


def dense_model(family: Family, seed: int = 0) -> PreTrainedModel:
    """Return transformers' model of the family with random, non-trivial weights."""
    torch.manual_seed(seed)
    # Some releases of transformers run Gemma 2 by SDPA without its soft cap.
    attention = "sdpa" if family.sdpa else "eager"
    model = AutoModelForCausalLM.from_config(family.config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def canonical_settings(family: Family) -> dict[str, Any]:
    """Return the fields of `IntraSliceConfig` for the dense model."""
    config = family.config
    common = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "tie_word_embeddings",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "rope_parameters",
    ]
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return {
        "base_model_type": config.model_type,
        "head_dim": family.head_dim,
        "hidden_act": activation,
        **{name: getattr(config, name, None) for name in common},
        **family.settings,
    }


def whole_model(family: Family, dense: PreTrainedModel) -> IntraSliceForCausalLM:
    """Return the dense model in the IntraSlice architecture, with nothing removed."""
    shape = Shape(
        num_key_value_heads=family.groups, qk_head_dim=family.head_dim, v_head_dim=family.head_dim
    )
    config = intraslice_config(canonical_settings(family), [shape] * LAYERS, [[]] * LAYERS)
    model = IntraSliceForCausalLM(config).eval()
    model.load_state_dict(family.canonical(dict(dense.state_dict()), family))
    return model


def tokens(batch: int = 2, length: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCAB_SIZE, (batch, length), generator=generator)
