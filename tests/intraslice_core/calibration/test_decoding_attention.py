"""Grouped attention of one token equals that of repeated keys, in transformers' own models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import repeat_kv

from intraslice_core.calibration.decoding_attention import grouped_attention, without_repeated_keys
from tests.intraslice_core.tiny_models import tiny_family_model, tiny_model


def attended_by_hand(query: Any, key: Any, value: Any, mask: Any, scale: float) -> torch.Tensor:
    """Return softmax(q kᵀ · scale) v with repeated keys, (batch, new, heads, value width)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    scores = query @ key.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("new", "masked"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize(("heads", "groups", "width"), [(6, 2, 8), (6, 2, 5), (4, 4, 8), (6, 1, 8)])
def test_attention_equals_that_of_repeated_keys(
    heads: int, groups: int, width: int, new: int, masked: bool
) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(3, heads, new, 8), torch.randn(3, groups, 7, 8)
    value = torch.randn(3, groups, 7, width)
    mask = torch.rand(3, 1, new, 7) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    module: Any = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    output, weights = grouped_attention(module, query, key, value, mask, scaling=0.3)
    expected = attended_by_hand(query, key, value, mask, 0.3)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert weights is None


def test_models_get_their_attention_back_even_after_an_error() -> None:
    model = tiny_model()
    seen = []

    def fail() -> None:
        with without_repeated_keys(model):
            seen.append(model.config._attn_implementation)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen == ["intraslice_grouped"]
    assert model.config._attn_implementation == "sdpa"


def test_models_with_other_attention_keep_it() -> None:
    model = tiny_family_model("gemma2")
    with without_repeated_keys(model):
        assert model.config._attn_implementation == "eager"
