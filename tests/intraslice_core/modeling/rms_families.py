"""More families with RMS norms, in the form of `dense_families`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    Exaone4Config,
    Glm4Config,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Ministral3Config,
    Olmo2Config,
    Olmo3Config,
    SeedOssConfig,
    SmolLM3Config,
)

from tests.intraslice_core.modeling.dense_families import (
    GROUPS,
    LAYERS,
    ORIGINAL_LENGTH,
    WIDTH,
    WINDOW,
    Family,
    Tensors,
    _dimensions,
)

_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_OUTPUT_NORMS = {"input_norms": False, "output_norms": True}


def _plain(tensors: Tensors, family: Family) -> Tensors:
    """Return the tensors, whose names and rows are canonical already."""
    return dict(tensors)


def _after(tensors: Tensors, family: Family) -> Tensors:
    """Rename norms that follow attention and MLP, and repeat norms of single heads."""
    names = {
        "post_attention_layernorm": "attention_output_norm",
        "post_feedforward_layernorm": "mlp_output_norm",
    }
    per_head = "qk_norm_across_heads" not in family.settings
    result = {}
    for name, tensor in tensors.items():
        renamed = ".".join(names.get(part, part) for part in name.split("."))
        repeated = per_head and ("q_norm" in name or "k_norm" in name)
        result[renamed] = tensor.repeat(GROUPS) if repeated else tensor
    return result


def _interleaved(rows: Tensor, head_dim: int, rotating: int) -> Tensor:
    """Reorder rows of query or key heads from neighbouring pairs to the canonical order."""
    heads = rows.unflatten(0, (-1, head_dim))
    still_first, still_second = heads[:, rotating:].chunk(2, dim=1)
    parts = (heads[:, 0:rotating:2], still_first, heads[:, 1:rotating:2], still_second)
    return torch.cat(parts, dim=1).flatten(0, 1)


def _glm(tensors: Tensors, family: Family) -> Tensors:
    names = {
        "post_self_attn_layernorm": "attention_output_norm",
        "post_mlp_layernorm": "mlp_output_norm",
    }
    result = {}
    for name, tensor in tensors.items():
        renamed = ".".join(names.get(part, part) for part in name.split("."))
        if "gate_up_proj" in name:
            gate, up = tensor.chunk(2)
            result[renamed.replace("gate_up", "gate")] = gate
            result[renamed.replace("gate_up", "up")] = up
        elif "q_proj" in name or "k_proj" in name:
            result[renamed] = _interleaved(tensor, family.head_dim, family.rotating or 0)
        else:
            result[renamed] = tensor
    return result


def _granite4_names(tensors: Tensors, family: Family) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        if "input_linear" in name:
            gate, up = tensor.chunk(2)
            result[name.replace("shared_mlp.input_linear", "mlp.gate_proj")] = gate
            result[name.replace("shared_mlp.input_linear", "mlp.up_proj")] = up
        else:
            result[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = tensor
    return result


def _olmo2() -> Family:
    return Family(
        config=Olmo2Config(**_dimensions(12), attention_bias=True),
        head_dim=12,
        settings={
            "norm_type": "rms_float32",
            "norm_eps": 1e-5,
            "qk_norm": True,
            "qk_norm_across_heads": True,
            "attention_bias": True,
            "attention_output_bias": True,
        }
        | _OUTPUT_NORMS,
        canonical=_after,
    )


def _olmo3() -> Family:
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    return Family(
        config=Olmo3Config(
            **_dimensions(12),
            sliding_window=WINDOW,
            layer_types=_TYPES,
            rope_parameters={
                "full_attention": scaled | {"original_max_position_embeddings": ORIGINAL_LENGTH},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        head_dim=12,
        settings={
            "norm_type": "rms_float32",
            "norm_eps": 1e-5,
            "qk_norm": True,
            "qk_norm_across_heads": True,
            "sliding_window": WINDOW,
            "layer_types": _TYPES,
        }
        | _OUTPUT_NORMS,
        canonical=_after,
    )


def _smollm3() -> Family:
    return Family(
        config=SmolLM3Config(
            **_dimensions(12),
            no_rope_layers=[0, 1, 0],
            use_sliding_window=True,
            sliding_window=WINDOW,
            attention_bias=True,
            mlp_bias=True,
        ),
        head_dim=12,
        settings={
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
            "sliding_window": WINDOW,
            "layer_types": _TYPES,
            "rope_layers": [False, True, False],
        },
        canonical=_plain,
    )


_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.4,
    "logits_scaling": 8.0,
}
_SCALES = {
    "embedding_scale": 3.0,
    "residual_scale": 0.22,
    "attention_scale": 0.4,
    "logit_scale": 0.125,
}


def _granite() -> Family:
    return Family(
        config=GraniteConfig(**_dimensions(12), **_MULTIPLIERS),
        head_dim=12,
        settings=dict(_SCALES),
        canonical=_plain,
    )


def _granite4() -> Family:
    return Family(
        config=GraniteMoeHybridConfig(
            **_dimensions(12),
            **_MULTIPLIERS,
            num_local_experts=0,
            mamba_n_heads=8,
            shared_intermediate_size=WIDTH,
            layer_types=["attention"] * LAYERS,
        ),
        head_dim=12,
        settings=_SCALES | {"rope_layers": [False] * LAYERS},
        canonical=_granite4_names,
    )


def _seed_oss() -> Family:
    return Family(
        config=SeedOssConfig(**_dimensions(20)),
        head_dim=20,
        settings={"attention_bias": True},
        canonical=_plain,
    )


def _exaone4() -> Family:
    return Family(
        config=Exaone4Config(**_dimensions(20), sliding_window=WINDOW, layer_types=_TYPES),
        head_dim=20,
        settings={
            "norm_eps": 1e-5,
            "qk_norm": True,
            "sliding_window": WINDOW,
            "layer_types": _TYPES,
            "rope_layers": [True, False, True],
        }
        | _OUTPUT_NORMS,
        canonical=_after,
    )


def _ministral3() -> Family:
    scaled = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_LENGTH // 4,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    }
    return Family(
        config=Ministral3Config(
            **_dimensions(20), rope_parameters=scaled | {"llama_4_scaling_beta": 0.5}
        ),
        head_dim=20,
        settings={
            "norm_eps": 1e-5,
            "rope_parameters": scaled,
            "query_scaling": {"beta": 0.5, "length": ORIGINAL_LENGTH // 4},
        },
        canonical=_plain,
    )


def _glm4() -> Family:
    return Family(
        config=Glm4Config(**_dimensions(16), rms_norm_eps=1e-5),
        head_dim=16,
        rotating=8,
        settings={"norm_eps": 1e-5, "attention_bias": True, "output_norms": True},
        canonical=_glm,
    )


RMS_FAMILIES: dict[str, Callable[[], Family]] = {
    "exaone4": _exaone4,
    "glm4": _glm4,
    "granite": _granite,
    "granite4": _granite4,
    "ministral3": _ministral3,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
}
