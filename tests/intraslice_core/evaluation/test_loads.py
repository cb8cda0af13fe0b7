"""Loads: both models alternate, and cache and memory equal the sizes of their tensors."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.config import SpeedPoint
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.evaluation.loads import PeakMemory, compare_under_loads, peak_bytes, run_load
from tests.intraslice_core.tiny_models import tiny_family_model, tiny_model

SMALL = SpeedPoint(batch_size=2, context_length=8)


def test_every_load_is_reported_in_order():
    points = (SMALL, SpeedPoint(batch_size=1, context_length=16))
    reports = compare_under_loads(tiny_model(), tiny_model(), points, new_tokens=3, repeats=4)
    assert [(load.batch_size, load.context_length) for load in reports] == [(2, 8), (1, 16)]
    for load in reports:
        assert (load.new_tokens, load.repeats) == (3, 4)
        for phase in (load.prefill, load.decode, load.first_token):
            assert phase.dense > 0.0
            assert phase.dense_spread >= 0.0


def test_cache_bytes_equal_keys_and_values():
    model = tiny_model()
    settings = model.config
    heads = settings.num_key_value_heads * settings.head_dim
    expected = 2 * settings.num_hidden_layers * heads * 4
    assert run_load(model, SMALL, new_tokens=3).cache_per_token == expected
    half = tiny_model().to(torch.bfloat16)
    assert run_load(half, SMALL, new_tokens=3).cache_per_token == expected / 2


def test_a_sliding_window_caches_fewer_bytes_per_token_for_longer_prompts():
    model = tiny_family_model("mistral")
    short = run_load(model, SpeedPoint(context_length=4), new_tokens=1).cache_per_token
    long = run_load(model, SpeedPoint(context_length=64), new_tokens=1).cache_per_token
    cached = model.config.sliding_window - 1  # the newest token is added by the next forward pass
    assert long == pytest.approx(short * cached / (64 + 1))


def test_models_alternate_and_the_first_changes():
    calls = []
    models = tiny_model(), tiny_model()
    for name, model in zip("dc", models, strict=True):
        model.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    compare_under_loads(*models, [SMALL], new_tokens=1, repeats=2)
    # Two passes per run; the runs are a warm-up, two repeats, and one for the memory.
    assert "".join(calls[::2]) == "dc" + "cd" + "dc" + "dc"


def test_peak_memory_contains_the_weights():
    model = tiny_model()
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert peak_bytes(model, SMALL, new_tokens=1) >= parameters


def test_memory_that_is_freed_within_the_block_counts():
    with PeakMemory(torch.device("cpu")) as peak:
        tensor = torch.ones(16 * 2**20)
        tensor.add_(1.0).sum()
        del tensor
    assert 60 * 2**20 <= peak.growth <= 200 * 2**20


def test_a_comparison_can_be_cancelled():
    with pytest.raises(CompressionCancelledError):
        compare_under_loads(
            tiny_model(),
            tiny_model(),
            [SMALL],
            new_tokens=1,
            repeats=2,
            should_cancel=lambda: True,
        )
