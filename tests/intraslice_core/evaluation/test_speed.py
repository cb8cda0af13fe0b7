"""Speed measurement by part, with alternating models and paired ratios."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from intraslice_core.errors import CompressionCancelledError
from intraslice_core.evaluation import speed
from intraslice_core.evaluation.speed import Workload, compare_speed, compared_rates, time_model
from tests.intraslice_core.tiny_models import tiny_model

WORK = {"batch_size": 2, "prompt_tokens": 8, "new_tokens": 4}


def slow_down(module: torch.nn.Module, seconds: float) -> None:
    module.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def test_a_slow_module_slows_only_its_own_part():
    model, slow = tiny_model(), tiny_model()
    for layer in slow.model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn)
        slow_down(layer.mlp.act_fn, 0.01)
    report = compare_speed(model, slow, **WORK, repeats=3)
    assert report.mlp.prefill.ratio < 0.5
    assert report.mlp.decode.ratio < 0.5
    assert report.layers.decode.ratio < 0.7
    assert report.whole.decode.ratio < 0.8
    assert report.attention.decode.ratio > report.mlp.decode.ratio


def test_rates_count_all_tokens_of_the_batch():
    model = tiny_model()
    slow_down(model.model.norm, 0.05)
    report = compare_speed(model, model, **WORK, repeats=2)
    # Each forward pass takes at least 50 ms: 2 x 8 tokens once, and then 2 tokens four times.
    assert report.whole.prefill.dense < 16 / 0.05
    assert report.whole.prefill.dense > 16 / 1.0
    assert report.whole.decode.dense < 8 / 0.2
    assert report.whole.decode.dense > 8 / 4.0


def test_the_parts_of_a_layer_take_less_time_than_the_layer():
    seconds = time_model(tiny_model(), Workload(**WORK))
    for phase in (seconds.prefill, seconds.decode):
        assert phase["attention"] + phase["mlp"] < phase["layers"]
        assert all(value > 0 for value in phase.values())


def test_ratio_is_the_median_of_paired_ratios():
    dense, compressed = [1.0, 2.0, 4.0], [0.5, 2.0, 1.0]
    phase = compared_rates(dense, compressed, tokens=10)
    assert phase.ratio == statistics.median([2.0, 1.0, 4.0])
    assert phase.dense == 5.0
    assert phase.compressed == 10.0
    # numpy.percentile([10, 5, 2.5], [25, 75]) = 3.75, 7.5
    assert phase.dense_spread == pytest.approx(3.75)


def test_models_alternate(monkeypatch):
    order: list[int] = []
    first, second = tiny_model(), tiny_model()
    original = speed.time_model

    def spy(model, work):
        order.append(0 if model is first else 1)
        return original(model, work)

    monkeypatch.setattr(speed, "time_model", spy)
    compare_speed(first, second, **WORK, repeats=4)
    assert all({*order[i : i + 2]} == {0, 1} for i in range(0, len(order), 2))
    assert order[2::2].count(0) == order[2::2].count(1)


def test_a_removed_module_has_no_speed():
    model, without = tiny_model(), tiny_model()
    seconds = time_model(without, Workload(**WORK))
    for phase in (seconds.prefill, seconds.decode):
        del phase["mlp"]
    whole = time_model(model, Workload(**WORK))
    assert speed._part_speed("mlp", [whole], [seconds], Workload(**WORK)) is None
    assert speed._part_speed("attention", [whole], [seconds], Workload(**WORK)) is not None


def test_hooks_are_removed():
    model = tiny_model().train()
    time_model(model, Workload(**WORK))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_can_be_cancelled():
    model = tiny_model()
    with pytest.raises(CompressionCancelledError):
        compare_speed(model, model, **WORK, repeats=2, should_cancel=lambda: True)
