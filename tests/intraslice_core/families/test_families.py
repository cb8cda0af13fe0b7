"""Adapters agree with transformers' models in names, shapes and counts, and reject variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, GPT2Config

from intraslice_core.config import SUPPORTED_MODEL_TYPES
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.families import FAMILIES
from intraslice_core.families.adapter import (
    FamilyAdapter,
    family_for,
    half_split_order,
    reordered_heads,
)
from intraslice_core.plan import dense_parameters
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    FORWARD_VARIANTS,
    VARIANTS,
    tiny_config,
    tiny_family_config,
    tiny_family_model,
    tiny_model,
)

REJECTED_BY_DEFAULT = {"granitemoehybrid"}
"""Model types whose default configuration has experts and Mamba layers."""


def named_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("variant", FAMILY_VARIANTS | FORWARD_VARIANTS)
def test_expected_tensors_and_parameters_are_those_of_the_model(variant: str) -> None:
    model = tiny_family_model(variant)
    family = family_for(model.config)
    assert family.expected_shapes(model.config) == named_shapes(model)
    assert dense_parameters(family.geometry(model.config)) == model.num_parameters()
    assert type(model).__name__ == family.architecture


@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_tensors_match_every_llama_variant(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    family = family_for(model.config)
    assert family.expected_shapes(model.config) == named_shapes(model)
    assert dense_parameters(family.geometry(model.config)) == model.num_parameters()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_missing_settings_take_the_configuration_class_defaults(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    assert FAMILIES[model_type].geometry({}) == FamilyAdapter(FAMILIES[model_type]).geometry(config)
    if model_type not in REJECTED_BY_DEFAULT:
        family_for(config)


def test_canonical_tensors_are_a_permutation_of_the_models() -> None:
    """Splitting fused projections and moving still dimensions keeps every row once."""
    model = tiny_family_model("phi3_longrope")
    family, prefix = family_for(model.config), "model.layers.0."
    dense = {n.removeprefix(prefix): t for n, t in model.state_dict().items() if prefix in n}
    canonical = family.canonical_layer(model.config, 0, dense)
    fused = dense["self_attn.qkv_proj.weight"]
    parts = [canonical[f"self_attn.{name}_proj.weight"] for name in "qkv"]
    assert sorted(torch.cat(parts)[:, 0].tolist()) == sorted(fused[:, 0].tolist())
    assert torch.equal(parts[2], fused[-parts[2].shape[0] :])


def test_interleaved_pairs_become_half_split_and_back() -> None:
    order = half_split_order(head_dim=12, rotating=8, interleaved=True)
    assert order.tolist() == [0, 2, 4, 6, 8, 9, 1, 3, 5, 7, 10, 11]
    config = tiny_family_config("glm4")
    rows = torch.randn(4 * 16, 5)
    order = family_for(config).rotary_order(config, 0)
    assert order is not None
    canonical = reordered_heads(rows, order)
    assert not torch.equal(canonical, rows)
    assert torch.equal(reordered_heads(canonical, order.argsort()), rows)


def test_settings_that_a_family_ignores_do_not_change_its_dimensions() -> None:
    stray = {"num_key_value_heads": 1, "head_dim": 6}
    for variant in ("gpt_neox", "opt"):
        geometry = FamilyAdapter(FAMILIES[variant]).geometry(tiny_family_config(variant, **stray))
        assert (geometry.num_key_value_heads, geometry.head_dim) == (4, 12)


def test_still_pairs_come_after_rotating_pairs() -> None:
    order = half_split_order(head_dim=12, rotating=8)
    assert order.tolist() == [0, 1, 2, 3, 8, 9, 4, 5, 6, 7, 10, 11]


def test_other_architectures_are_rejected_with_a_list_of_the_supported() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"gpt2.*supported: llama, mistral"):
        family_for(GPT2Config())


@pytest.mark.parametrize(
    "setting", [{"sliding_window": 64}, {"attention_chunk_size": 32}, {"quantization_config": {}}]
)
def test_unsupported_common_settings_are_rejected_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=next(iter(setting))):
        family_for(tiny_config(**setting))


@pytest.mark.parametrize(
    ("variant", "setting", "complaint"),
    [
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi", {"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("mistral", {"sliding_window": 0}, "sliding_window 0"),
        ("qwen3", {"hidden_act": "softplus_squared"}, "hidden_act"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere", {"logit_scale": None}, "logit_scale None"),
        ("cohere2", {"sliding_window": None}, "without sliding_window"),
        ("gpt_neox", {"rotary_pct": 0.25}, "partial_rotary_factor 0.25"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before false"),
        ("opt", {"word_embed_proj_dim": 24}, "word_embed_proj_dim 24"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier 0.0"),
        ("granite", {"logits_scaling": 0}, "logits_scaling 0"),
        ("granite4", {"num_local_experts": 4}, "num_local_experts 4"),
        ("granite4", {"layer_types": ["attention", "mamba", "attention"]}, "linear_attention"),
        ("glm", {"partial_rotary_factor": 0.3}, "partial_rotary_factor"),
        ("smollm3", {"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 3}, "no_rope"),
    ],
)
def test_unsupported_settings_of_a_family_are_rejected_by_name(
    variant: str, setting: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=complaint):
        family_for(tiny_family_config(variant, **setting))


@pytest.mark.parametrize(
    "size", [{"num_key_value_heads": 0}, {"head_dim": 0}, {"intermediate_size": -1}]
)
def test_impossible_sizes_are_named(size: dict[str, int]) -> None:
    with pytest.raises(BrokenCheckpointError, match=next(iter(size))):
        family_for(tiny_config(**size))


def test_partial_rotary_is_rejected_where_the_family_rotates_whole_heads() -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(UnsupportedArchitectureError, match="partial_rotary_factor"):
        family_for(tiny_config(rope_parameters=rope))


def test_the_service_lists_all_families() -> None:
    assert tuple(FAMILIES) == SUPPORTED_MODEL_TYPES


def test_every_family_has_a_title_of_its_own() -> None:
    titles = [family.title for family in FAMILIES.values()]
    assert len(set(titles)) == len(titles)
