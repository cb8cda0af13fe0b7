"""Sliced models compute the same as full-size models with zeros in place of the removed."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.modeling.components_intraslice import attend_once, pad_heads
from tests.intraslice_core.modeling.cutting import (
    cut_and_masked,
    cut_model,
    cuts,
    cuts_without_modules,
)
from tests.intraslice_core.modeling.dense_families import FAMILIES, tokens
from tests.intraslice_core.modeling.layer_norm_families import LAYER_NORM_FAMILIES
from tests.intraslice_core.modeling.rms_families import RMS_FAMILIES
from tests.intraslice_core.modeling.test_families import (
    assert_same_generation,
    generate,
)

GROUPED = FAMILIES | RMS_FAMILIES | LAYER_NORM_FAMILIES
WITH_ATTENTION = [
    (name, implementation) for name in GROUPED for implementation in GROUPED[name]().implementations
]
CACHED = [*FAMILIES, "exaone4", "ministral3", "olmo2", "smollm3", "cohere2"]
"""Families whose attention differs."""
SHAPES = {"irregular": cuts, "without_modules": cuts_without_modules}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(("name", "attention"), WITH_ATTENTION)
def test_sliced_model_equals_the_full_size_model_with_zeros(
    name: str, attention: str, shapes: str
) -> None:
    family = GROUPED[name]()
    model, masked = cut_and_masked(family, SHAPES[shapes](family.head_dim))
    padded = torch.ones_like(tokens())
    padded[0, :4] = 0
    model.set_attn_implementation(attention)
    masked.set_attn_implementation(attention)
    for mask in (None, padded):
        with torch.no_grad():
            expected = masked(tokens(), attention_mask=mask).logits
            actual = model(tokens(), attention_mask=mask).logits
        # Norms on outputs magnify rounding errors.
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [name for name in CACHED if name != "dynamic_rope"])
def test_generation_with_a_cache_equals_generation_without(
    name: str, cache: str, shapes: str
) -> None:
    family = GROUPED[name]()
    model = cut_model(family, SHAPES[shapes](family.head_dim))
    without = generate(model, use_cache=False)
    with_cache = generate(model, cache_implementation=cache, disable_compile=True)
    assert_same_generation(with_cache, without)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_caches_hold_the_widths_of_each_layer(attention: str) -> None:
    model = cut_model(FAMILIES["llama"]())
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(tokens()).logits
        first = model(tokens()[:, :4], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for position in range(4, 21):
            out = model(tokens()[:, position : position + 1], past_key_values=cache)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    assert [layer.keys.shape[1] for layer in cache.layers] == [2, 2, 1]
    assert [layer.keys.shape[-1] for layer in cache.layers] == [6, 6, 6]
    assert [layer.values.shape[-1] for layer in cache.layers] == [4, 11, 4]


def test_sliding_window_bounds_the_length_of_a_cache() -> None:
    model = cut_model(FAMILIES["gemma2"]())
    with torch.no_grad():
        cache = model(tokens(), use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [4, 21, 4]


def test_removed_modules_keep_only_their_norms() -> None:
    family = FAMILIES["gemma3"]()
    state = cut_model(family, cuts_without_modules(family.head_dim)).state_dict()
    assert not any(name.startswith("model.layers.0.self_attn") for name in state)
    assert not any(name.startswith("model.layers.1.mlp.") for name in state)
    for layer in range(3):
        names = {
            name for name in state if name.startswith(f"model.layers.{layer}.") and "norm" in name
        }
        assert {
            f"model.layers.{layer}.{norm}.weight"
            for norm in (
                "input_layernorm",
                "post_attention_layernorm",
                "attention_output_norm",
                "mlp_output_norm",
            )
        } <= names


def test_query_norm_divides_by_the_dense_width() -> None:
    model, masked = cut_and_masked(FAMILIES["qwen3"](), cuts(20))
    norm = model.model.layers[0].self_attn.q_norm
    assert norm.weight.shape == (2 * 10,)
    heads = torch.randn(1, 2, 2, 3, 10)
    expected = heads / (heads.square().sum(-1, keepdim=True) / 20 + 1e-6).sqrt()
    expected = expected * norm.weight.view(2, 1, 1, 10)
    with torch.no_grad():
        torch.testing.assert_close(norm(heads), expected)
    assert masked.model.layers[0].self_attn.q_norm.weight.shape == (2 * 20,)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_query_attends_as_in_eager_attention(groups: int, masked: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 1, 6), torch.randn(2, groups, 9, 6)
    value = torch.randn(2, groups, 9, 5)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., :3] = not masked
    output, _ = attend_once(query, key, value, mask if masked else None, 0.5, 0.0)
    each = [part.repeat_interleave(4 // groups, 1) for part in (key, value)]
    scores = (query @ each[0].mT * 0.5).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ each[1]
    torch.testing.assert_close(output.reshape(2, 4, 1, 5), expected, atol=1e-6, rtol=1e-5)


def test_only_narrower_heads_are_padded() -> None:
    heads = torch.randn(1, 2, 3, 4)
    assert pad_heads(heads, 4) is heads
    padded = pad_heads(heads, 6)
    torch.testing.assert_close(padded[..., :4], heads)
    assert padded.shape == (1, 2, 3, 6)
    assert not padded[..., 4:].any()
