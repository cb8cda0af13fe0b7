"""Blocks of queries give the attention of torch's kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intraslice_core import attention_kernels, decoder_layer
from intraslice_core.decoder_layer import LayerSettings


def settings_with(window: int | None) -> LayerSettings:
    return LayerSettings(
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        activation=torch.nn.functional.silu,
        norm_eps=1e-6,
        attention_scale=0.25,
        sliding_window=window,
    )


def heads(seed: int, count: int, sequence: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, sequence, count, width, generator=generator) * 2
    return drawn.to(torch.bfloat16).transpose(1, 2)


@pytest.mark.parametrize("sequence", [1, 40, 200])
@pytest.mark.parametrize("window", [None, 1, 50, 64, 150])
def test_blocks_give_the_exact_attention_within_rounding(
    sequence: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "_BLOCK_SCORES", 2 * 6 * 64 * sequence)
    settings = settings_with(window)
    query, key, value = (
        heads(0, 6, sequence, 16),
        heads(1, 2, sequence, 16),
        heads(2, 2, sequence, 12),
    )
    with torch.inference_mode():
        assert attention_kernels.prefers_blocks(query, settings)
        blocks = decoder_layer.attend(query, key, value, settings)
    # Gradients need torch's kernel, and float64 is exact.
    exact = decoder_layer.attend(query.double(), key.double(), value.double(), settings)
    torch.testing.assert_close(blocks.double(), exact, rtol=2e-2, atol=2e-2)
    assert (blocks.double() - exact).abs().mean() < 3e-3


def test_gradients_and_float32_use_torchs_kernel() -> None:
    query, settings = heads(0, 6, 8, 16), settings_with(None)
    assert not attention_kernels.prefers_blocks(query, settings)
    with torch.inference_mode():
        assert not attention_kernels.prefers_blocks(query.float(), settings)
