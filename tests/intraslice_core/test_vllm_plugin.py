"""Sliced attention as vLLM computes it: dense heads, of which the removed dimensions are zero.

vLLM itself is not installed here; `benchmarks/runtimes.py` runs the plugin in it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from intraslice_core.config import CompressionConfig
from intraslice_core.export.targets import IN_VLLM, SLOW_IN_VLLM, VLLM_TYPES, runtimes
from intraslice_core.modeling import IntraSliceForCausalLM, decode_rotary_pairs, intraslice_config
from intraslice_core.vllm_plugin import common_heads, dense_columns, runs_in_vllm_layers
from tests.intraslice_core.modeling.cutting import (
    cut_model,
    cuts,
    cuts_without_modules,
    whole_layer,
)
from tests.intraslice_core.modeling.dense_families import FAMILIES, canonical_settings, tokens
from tests.intraslice_core.modeling.layer_norm_families import LAYER_NORM_FAMILIES
from tests.intraslice_core.modeling.rms_families import RMS_FAMILIES

LLAMA = FAMILIES["llama"]()
ALL_FAMILIES = FAMILIES | RMS_FAMILIES | LAYER_NORM_FAMILIES


def dense_attention(model: IntraSliceForCausalLM, layer: int, hidden_states: Tensor) -> Tensor:
    """Return the attention's output, computed as in `vllm_model` from vLLM's operations."""
    config, attention = model.config, model.model.layers[layer].self_attn
    shape, head_dim = config.per_layer_config[layer], config.head_dim
    per_group, groups = common_heads(config)
    every = list(range(head_dim // 2))
    pairs = decode_rotary_pairs(shape.rotary_pairs) or [every] * shape.num_key_value_heads
    inputs, outputs = dense_columns(shape, pairs, head_dim, (per_group, groups))
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    sliced = torch.cat([projection(hidden_states) for projection in projections], dim=-1)
    dense = F.pad(sliced, (0, 1)).index_select(-1, inputs)
    width = groups * head_dim
    query, key, value = (
        part.unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for part in dense.split((per_group * width, width, width), dim=-1)
    )
    positions = torch.arange(hidden_states.shape[1])[None]
    cos, sin = LlamaRotaryEmbedding(LLAMA.config)(hidden_states, positions)
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    heads = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True, scale=config.attention_scale
    )
    attended = heads.transpose(1, 2).flatten(2).index_select(-1, outputs)
    output: Tensor = attention.o_proj(attended)
    return output


@pytest.mark.parametrize("shapes", [cuts, cuts_without_modules])
def test_attention_of_dense_heads_equals_the_sliced_attention(shapes) -> None:
    model = cut_model(LLAMA, shapes(LLAMA.head_dim))
    outputs: dict[int, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(model.model.layers):
        if layer.self_attn is not None:

            def keep(module, arguments, options, result, index: int = index) -> None:
                outputs[index] = (options["hidden_states"], result[0])

            layer.self_attn.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(tokens())
        assert len(outputs) >= 2
        for index, (hidden_states, expected) in outputs.items():
            actual = dense_attention(model, index, hidden_states)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_decoders_with_settings_of_llama_run_in_layers_of_vllm(name: str) -> None:
    family = ALL_FAMILIES[name]()
    layers = [whole_layer(family.head_dim)] * family.config.num_hidden_layers
    shapes, pairs = [cut.shape for cut in layers], [cut.pairs for cut in layers]
    config = intraslice_config(canonical_settings(family), shapes, pairs)
    plain = (config.rope_parameters or {}).get("rope_type") in ("default", "llama3")
    slides = config.sliding_window is not None
    expected = config.base_model_type in VLLM_TYPES and plain and not slides
    assert runs_in_vllm_layers(config) == expected


@pytest.mark.parametrize(
    ("target", "settings", "exports", "names"),
    [
        ("research", {"rope_parameters": {"rope_type": "llama3"}}, (), [IN_VLLM]),
        ("research", {"qk_norm": True}, (), [SLOW_IN_VLLM]),
        ("research", {"rope_parameters": {"rope_type": "yarn"}}, (), [SLOW_IN_VLLM]),
        ("research", {"sliding_window": 4096}, (), [SLOW_IN_VLLM]),
        ("adaptive", {}, (), ["vLLM as DeciLM"]),
        ("adaptive", {}, ("gguf-f16",), ["vLLM as DeciLM", "llama.cpp"]),
    ],
)
def test_reports_name_the_runtimes_of_a_result(target, settings, exports, names) -> None:
    config = CompressionConfig(target=target, exports=("safetensors", *exports))
    first, *others = runtimes(config, settings)
    assert first == "transformers with the checkpoint's code"
    assert others == names
