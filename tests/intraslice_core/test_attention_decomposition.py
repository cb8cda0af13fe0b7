"""Moments of values, by which MoDeGPT factorises them; the oracle is in methods/test_modegpt.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from intraslice_core.attention_decomposition import _ValueMoments
from intraslice_core.decoder_layer import LayerWeights, Linear
from intraslice_core.ranks import ALONE


def layer_with_values(weight: torch.Tensor, bias: torch.Tensor) -> LayerWeights:
    """Return a layer of two KV groups; only its values matter."""
    empty = Linear(weight=torch.zeros(2, weight.shape[1]))
    layer = LayerWeights(
        num_key_value_heads=2,
        input_norm=None,
        query=empty,
        key=empty,
        value=empty,
        attention_output=empty,
        mlp_norm=None,
        gate=None,
        up=empty,
        mlp_output=empty,
    )
    return replace(layer, value=Linear(weight=weight, bias=bias))


@pytest.mark.parametrize("prefix_length", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_of_the_text_s_values_with_their_bias_in_any_batches(
    prefix_length: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * 3, 5, generator=generator).to(dtype)
    bias = torch.randn(2 * 3, generator=generator).to(dtype)
    normed = torch.randn(7, 6, 5, generator=generator).to(dtype)
    normed[:, :prefix_length] *= 100.0
    moments = _ValueMoments(layer_with_values(weight, bias), prefix_length, ALONE)
    for batch in normed.split([2, 1, 4]):
        moments.add(batch)
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    values = torch.nn.functional.linear(normed, weight, bias).double()
    for sequence in values[:, prefix_length:]:
        for value in sequence.view(-1, 2, 3):
            expected += value.unsqueeze(2) * value.unsqueeze(1)
    expected /= 7 * (6 - prefix_length)
    torch.testing.assert_close(moments.mean(), expected, rtol=1e-5, atol=1e-5)
