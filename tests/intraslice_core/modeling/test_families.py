"""The IntraSlice architecture computes the same as transformers' model of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.intraslice_core.modeling.dense_families import (
    FAMILIES,
    ORIGINAL_LENGTH,
    dense_model,
    tokens,
    whole_model,
)
from tests.intraslice_core.modeling.layer_norm_families import (
    LAYER_NORM_FAMILIES,
    MULTI_HEAD_FAMILIES,
)
from tests.intraslice_core.modeling.rms_families import RMS_FAMILIES

ALL = FAMILIES | RMS_FAMILIES | LAYER_NORM_FAMILIES | MULTI_HEAD_FAMILIES
LENGTHS = {"shorter": ORIGINAL_LENGTH - 7, "longer": ORIGINAL_LENGTH + 5}
WITH_ATTENTION = [
    (name, implementation) for name in ALL for implementation in ALL[name]().implementations
]


@pytest.mark.parametrize(("name", "attention"), WITH_ATTENTION)
def test_logits_match_transformers(name: str, attention: str) -> None:
    family = ALL[name]()
    dense = dense_model(family)
    model = whole_model(family, dense)
    dense.set_attn_implementation(attention)
    model.set_attn_implementation(attention)
    # The shorter length comes again: dynamic and longrope must return to its frequencies.
    for length in ("shorter", "longer", "shorter"):
        inputs = tokens(length=LENGTHS[length])
        padded = torch.ones_like(inputs)
        padded[0, :4] = 0
        for mask in (None, padded):
            with torch.no_grad():
                expected = dense(inputs, attention_mask=mask).logits
                actual = model(inputs, attention_mask=mask).logits
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_differs_by_less_than_its_rounding_error(name: str) -> None:
    family = ALL[name]()
    dense = dense_model(family)
    model = whole_model(family, dense)
    with torch.no_grad():
        exact = dense(tokens()).logits
        expected = dense.to(torch.bfloat16)(tokens()).logits
        actual = model.to(torch.bfloat16)(tokens()).logits
    assert actual.dtype == torch.bfloat16

    def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.float() - second.float()).square().mean().sqrt()

    # Only the rotation is rounded differently (once instead of three times). Two models with
    # independent rounding errors would be 1.4 errors apart.
    assert distance(actual, expected) < distance(expected, exact)
    assert distance(actual, exact) < 1.2 * distance(expected, exact)


@pytest.mark.parametrize("name", ["llama", "phi", "gemma2", "gemma3", "cohere2", "nemotron"])
def test_embedding_and_norms_are_bitwise_those_of_transformers(name: str) -> None:
    family = ALL[name]()
    dense = dense_model(family).to(torch.bfloat16)
    model = whole_model(family, dense).to(torch.bfloat16)
    with torch.no_grad():
        expected, actual = dense.model.embed_tokens(tokens()), model.model.embed_tokens(tokens())
        assert torch.equal(actual, expected)
        normed = dense.model.layers[1].input_layernorm(expected)
        assert torch.equal(model.model.layers[1].input_layernorm(actual), normed)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_query_norm_rounds_as_transformers(name: str) -> None:
    family = ALL[name]()
    dense = dense_model(family).to(torch.bfloat16)
    model = whole_model(family, dense).to(torch.bfloat16)
    heads = torch.randn(2, 2, 2, 7, family.head_dim, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = dense.model.layers[0].self_attn.q_norm(heads)
        actual = model.model.layers[0].self_attn.q_norm(heads)
    # The mean is a sum over another width: a float32 bit that may flip a few bfloat16 values.
    assert (actual == expected).float().mean() > 0.99


def generate(model: PreTrainedModel, **options: Any) -> Any:
    """Generate ten greedy tokens, beyond the longrope length and the window, with their logits."""
    inputs = tokens(length=11)
    return model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def assert_same_generation(actual: Any, expected: Any) -> None:
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(
        torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", ALL)
def test_greedy_generation_matches_transformers(name: str) -> None:
    family = ALL[name]()
    dense = dense_model(family)
    # Most of transformers' models (in some releases all) keep cached keys that were rotated by
    # longrope's short frequencies.
    expected = generate(dense, use_cache=name not in ("long_rope", "phi4_mini"))
    assert_same_generation(generate(whole_model(family, dense)), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
# Cached keys keep the frequencies that dynamic rotary embedding had when they were computed.
@pytest.mark.parametrize("name", [name for name in ALL if name != "dynamic_rope"])
def test_greedy_generation_with_a_cache_equals_generation_without(name: str, cache: str) -> None:
    family = ALL[name]()
    model = whole_model(family, dense_model(family))
    without = generate(model, use_cache=False)
    with_cache = generate(model, cache_implementation=cache, disable_compile=True)
    assert_same_generation(with_cache, without)
