"""More families with LayerNorm, in the form of `dense_families`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    Cohere2Config,
    GPTNeoXConfig,
    NemotronConfig,
    OPTConfig,
    StableLmConfig,
    Starcoder2Config,
)

from tests.intraslice_core.modeling.dense_families import (
    HEADS,
    LAYERS,
    WIDTH,
    WINDOW,
    Family,
    Tensors,
    _dimensions,
    _half_split,
)


def _renamed(tensors: Tensors, family: Family, names: dict[str, str]) -> Tensors:
    """Rename parts of names, and order rotated rows canonically."""
    result = {}
    for name, tensor in tensors.items():
        parts = [names.get(part, part) for part in name.split(".")]
        rotated = "q_proj" in parts or "k_proj" in parts
        result[".".join(parts)] = _half_split(tensor, family) if rotated else tensor
    return result


def _cohere2() -> Family:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    dimensions = _dimensions(12, hidden=48)
    del dimensions["head_dim"]

    def canonical(tensors: Tensors, family: Family) -> Tensors:
        """Put the first dimensions of all pairs before the second ones."""
        result = dict(tensors)
        for name, rows in tensors.items():
            if "q_proj" in name or "k_proj" in name:
                heads = rows.unflatten(0, (-1, 12))
                result[name] = torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)
        return result

    return Family(
        config=Cohere2Config(
            **dimensions, layer_types=types, sliding_window=WINDOW, layer_norm_eps=1e-4
        ),
        head_dim=12,
        settings={
            "norm_type": "layer_without_bias",
            "norm_eps": 1e-4,
            "parallel_block": True,
            "logit_scale": 0.0625,
            "sliding_window": WINDOW,
            "layer_types": types,
            "rope_layers": [True, False, True],
        },
        canonical=canonical,
    )


_PLAIN_MLP = {"gated_mlp": False, "mlp_bias": True}
_ATTENTION_BIASES = {"attention_bias": True, "attention_output_bias": True}


def _starcoder2() -> Family:
    dimensions = _dimensions(12, hidden=48)
    del dimensions["head_dim"]
    return Family(
        config=Starcoder2Config(**dimensions, sliding_window=WINDOW, norm_epsilon=1e-4),
        head_dim=12,
        settings={
            "norm_type": "layer",
            "norm_eps": 1e-4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention"] * LAYERS,
        }
        | _PLAIN_MLP
        | _ATTENTION_BIASES,
        canonical=lambda tensors, family: _renamed(
            tensors, family, {"c_fc": "up_proj", "c_proj": "down_proj"}
        ),
    )


def _stablelm(*, parallel: bool) -> Family:
    dimensions = _dimensions(20, hidden=80)
    del dimensions["head_dim"]
    return Family(
        config=StableLmConfig(
            **dimensions,
            partial_rotary_factor=0.4,
            layer_norm_eps=1e-4,
            use_qkv_bias=True,
            use_parallel_residual=parallel,
        ),
        head_dim=20,
        rotating=8,
        settings={
            "norm_type": "layer",
            "norm_eps": 1e-4,
            "attention_bias": True,
            "parallel_block": parallel,
        },
        canonical=lambda tensors, family: _renamed(tensors, family, {}),
    )


def _nemotron() -> Family:
    return Family(
        config=NemotronConfig(
            **_dimensions(20),
            partial_rotary_factor=0.6,
            norm_eps=1e-4,
            mlp_bias=True,
            attention_bias=True,
        ),
        head_dim=20,
        rotating=12,
        settings={"norm_type": "layer_plus_one", "norm_eps": 1e-4} | _PLAIN_MLP | _ATTENTION_BIASES,
        canonical=lambda tensors, family: _renamed(tensors, family, {}),
    )


def _gpt_neox(*, parallel: bool) -> Family:
    dimensions = _dimensions(20, hidden=80)
    del dimensions["head_dim"], dimensions["num_key_value_heads"]

    def canonical(tensors: Tensors, family: Family) -> Tensors:
        names = {
            "gpt_neox": "model",
            "embed_in": "embed_tokens",
            "final_layer_norm": "norm",
            "attention": "self_attn",
            "dense": "o_proj",
            "dense_h_to_4h": "up_proj",
            "dense_4h_to_h": "down_proj",
        }
        split = {}
        for name, rows in tensors.items():
            if "query_key_value" not in name:
                split[name] = rows
                continue
            for part, piece in zip("qkv", rows.unflatten(0, (HEADS, 3, 20)).unbind(1), strict=True):
                split[name.replace("query_key_value", f"{part}_proj")] = piece.flatten(0, 1)
        return _renamed(split, family, names)

    return Family(
        config=GPTNeoXConfig(
            **dimensions, rotary_pct=0.4, layer_norm_eps=1e-4, use_parallel_residual=parallel
        ),
        head_dim=20,
        groups=HEADS,
        rotating=8,
        settings={
            "norm_type": "layer",
            "norm_eps": 1e-4,
            "num_key_value_heads": HEADS,
            "parallel_block": parallel,
            "separate_mlp_norm": parallel,
        }
        | _PLAIN_MLP
        | _ATTENTION_BIASES,
        canonical=canonical,
    )


def _opt() -> Family:
    dimensions = _dimensions(12, hidden=48)
    for name in ("head_dim", "num_key_value_heads", "intermediate_size", "initializer_range"):
        del dimensions[name]

    def canonical(tensors: Tensors, family: Family) -> Tensors:
        names = {
            "self_attn_layer_norm": "input_layernorm",
            "final_layer_norm": "post_attention_layernorm",
            "out_proj": "o_proj",
            "fc1": "mlp.up_proj",
            "fc2": "mlp.down_proj",
        }
        result = {}
        for name, tensor in tensors.items():
            plain = name.replace("decoder.final_layer_norm", "norm").replace("decoder.", "")
            result[".".join(names.get(part, part) for part in plain.split("."))] = tensor
        return result

    return Family(
        config=OPTConfig(**dimensions, ffn_dim=WIDTH, init_std=0.2),
        head_dim=12,
        groups=HEADS,
        settings={
            "norm_type": "layer",
            "norm_eps": 1e-5,
            "hidden_act": "relu",
            "intermediate_size": WIDTH,
            "initializer_range": 0.2,
            "num_key_value_heads": HEADS,
            "position_rows": 66,
            "position_offset": 2,
            "rope_layers": [False] * LAYERS,
        }
        | _PLAIN_MLP
        | _ATTENTION_BIASES,
        canonical=canonical,
    )


LAYER_NORM_FAMILIES: dict[str, Callable[[], Family]] = {
    "cohere2": _cohere2,
    "nemotron": _nemotron,
    "stablelm": lambda: _stablelm(parallel=False),
    "stablelm_parallel": lambda: _stablelm(parallel=True),
    "starcoder2": _starcoder2,
}
MULTI_HEAD_FAMILIES: dict[str, Callable[[], Family]] = {
    "gpt_neox": lambda: _gpt_neox(parallel=True),
    "gpt_neox_sequential": lambda: _gpt_neox(parallel=False),
    "opt": _opt,
}
"""Families with as many KV heads as query heads, which the cuts of `cutting` do not fit."""
