"""Durations on GPUs follow the rates of their class and the path of factorisations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.large_models import LLAMAS
from intraslice_core.accelerators import GPU_CLASSES
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import (
    REFERENCE_RATES,
    expected_durations,
    machine_rates,
    stage_seconds,
)
from intraslice_core.progress import Stage

H100, L4, T4 = GPU_CLASSES[9, 0], GPU_CLASSES[8, 9], GPU_CLASSES[7, 5]


def test_a_cpu_has_the_rates_of_the_reference() -> None:
    assert machine_rates(None, 2) is REFERENCE_RATES
    assert REFERENCE_RATES.path == "float64"


def test_factorisations_take_the_path_of_the_class() -> None:
    assert machine_rates(H100, 2).path == "float64"
    rates = machine_rates(L4, 2)
    assert rates.path == "mixed"
    in_float64 = replace(L4, float64_share=1 / 2)
    assert machine_rates(in_float64, 2).path == "float64"
    # One in a hundred operations stays in float64, at 1/64 of the rate.
    assert rates.factorisations == pytest.approx(
        2 * machine_rates(in_float64, 2).factorisations / 1.63
    )
    assert machine_rates(L4, 4).products == pytest.approx(rates.products / 4)


def test_factorisations_in_float32_save_most_of_their_time_on_slow_gpus() -> None:
    geometry, mixed = LLAMAS["Llama-3-8B"], machine_rates(L4, 2)
    loss = mixed.factorisations / (0.25 * L4.float32 * L4.float64_share)
    in_float64 = replace(
        mixed,
        factorisations=mixed.factorisations / loss,
        eliminations=mixed.eliminations / loss,
    )
    config = CompressionConfig(ratio=0.3)
    seconds = [stage_seconds(geometry, config, None, 2, rates) for rates in (in_float64, mixed)]
    for stage in (Stage.ALLOCATE, Stage.COMPRESS):
        assert seconds[1][stage] < 0.6 * seconds[0][stage]


def test_every_stage_is_faster_on_a_gpu_but_those_of_files() -> None:
    config, evaluation = CompressionConfig(ratio=0.3), EvaluationConfig()
    geometry = LLAMAS["Llama-3-8B"]
    reference = expected_durations(geometry, config, evaluation, 2)
    on_gpu = expected_durations(geometry, config, evaluation, 2, rates=machine_rates(H100, 2))
    for stage in (Stage.CALIBRATE, Stage.ALLOCATE, Stage.COMPRESS, Stage.EVALUATE):
        assert on_gpu.stages[stage] < reference.stages[stage]
    assert on_gpu.stages[Stage.LOAD] == reference.stages[Stage.LOAD]
    assert on_gpu.allocation.total < reference.allocation.total


def test_gpus_without_bfloat16_compute_in_float32_or_float16() -> None:
    assert machine_rates(T4, 4).products < machine_rates(T4, 2).products
