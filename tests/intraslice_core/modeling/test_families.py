"""Our one architecture against every family's own class: same mathematics, nothing cut."""

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

LENGTHS = {"shorter": ORIGINAL_LENGTH - 7, "longer": ORIGINAL_LENGTH + 5}
WITH_ATTENTION = [
    (name, implementation)
    for name in FAMILIES
    for implementation in FAMILIES[name]().implementations
]


@pytest.mark.parametrize(("name", "attention"), WITH_ATTENTION)
def test_logits_are_those_of_the_familys_own_class(name: str, attention: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family)
    model = whole_model(family, dense)
    for one in (dense, model):
        one.set_attn_implementation(attention)
    # Back to the shorter one at the end: dynamic and longrope must find their way back.
    for length in ("shorter", "longer", "shorter"):
        given = tokens(length=LENGTHS[length])
        padded = torch.ones_like(given)
        padded[0, :4] = 0
        for mask in (None, padded):
            with torch.no_grad():
                expected = dense(given, attention_mask=mask).logits
                got = model(given, attention_mask=mask).logits
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_differs_by_less_than_its_own_error(name: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family)
    model = whole_model(family, dense)
    with torch.no_grad():
        exact = dense(tokens()).logits
        expected = dense.to(torch.bfloat16)(tokens()).logits
        got = model.to(torch.bfloat16)(tokens()).logits
    assert got.dtype == torch.bfloat16

    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.float() - other.float()).square().mean().sqrt()

    # Only the rotation is rounded otherwise (once, not three times). Two models whose roundings
    # have nothing in common would be 1.4 errors apart.
    assert distance(got, expected) < distance(expected, exact)
    assert distance(got, exact) < 1.2 * distance(expected, exact)


@pytest.mark.parametrize("name", ["llama", "phi", "gemma2", "gemma3"])
def test_embedding_and_norms_round_bit_for_bit_as_the_family_does(name: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family).to(torch.bfloat16)
    model = whole_model(family, dense).to(torch.bfloat16)
    with torch.no_grad():
        theirs, ours = dense.model.embed_tokens(tokens()), model.model.embed_tokens(tokens())
        assert torch.equal(ours, theirs)
        normed = dense.model.layers[1].input_layernorm(theirs)
        assert torch.equal(model.model.layers[1].input_layernorm(ours), normed)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_query_norm_rounds_as_the_family_does(name: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family).to(torch.bfloat16)
    model = whole_model(family, dense).to(torch.bfloat16)
    heads = torch.randn(2, 2, 2, 7, family.head_dim, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = dense.model.layers[0].self_attn.q_norm(heads)
        got = model.model.layers[0].self_attn.q_norm(heads)
    # The mean is a sum over another width: a float32 bit that may tip one bfloat16 in many.
    assert (got == expected).float().mean() > 0.99


def generate(model: PreTrainedModel, **asked: Any) -> Any:
    """Ten greedy tokens, past the longrope length and the window, with their logits."""
    given = tokens(length=11)
    return model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **asked,
    )


def assert_same_generation(got: Any, expected: Any) -> None:
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(expected.logits), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_generation_is_that_of_the_familys_own_class(name: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family)
    # Most of transformers' classes (and some of its releases: all) keep keys that were turned by
    # longrope's short frequencies.
    expected = generate(dense, use_cache=name not in ("long_rope", "phi4_mini"))
    assert_same_generation(generate(whole_model(family, dense)), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
# Keys in a cache keep the frequencies that dynamic rotary had when they were new.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "dynamic_rope"])
def test_greedy_generation_with_a_cache_is_generation_without(name: str, cache: str) -> None:
    family = FAMILIES[name]()
    model = whole_model(family, dense_model(family))
    without = generate(model, use_cache=False)
    with_cache = generate(model, cache_implementation=cache, disable_compile=True)
    assert_same_generation(with_cache, without)
