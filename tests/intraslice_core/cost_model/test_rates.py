"""Durations on GPUs follow the rates of their class and the path of factorisations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.large_models import LLAMAS
from intraslice_core.accelerators import GPU_CLASSES
from intraslice_core.config import CompressionConfig, EvaluationConfig, Method
from intraslice_core.cost_model import (
    REFERENCE_RATES,
    expected_durations,
    machine_rates,
    stage_flops,
    stage_seconds,
)
from intraslice_core.methods import METHODS
from intraslice_core.progress import Stage
from tests.intraslice_core.smollm2 import SMOLLM2

H100, L4, T4 = GPU_CLASSES[9, 0], GPU_CLASSES[8, 9], GPU_CLASSES[7, 5]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_products_with_moments_are_a_part_of_the_factorisations(
    method: Method, ratio: float
) -> None:
    flops = stage_flops(SMOLLM2, CompressionConfig(method=method, ratio=ratio))
    for products, every in (
        (flops.sensitivity_moment_products, flops.sensitivity_factorisations),
        (flops.trial_moment_products, flops.trial_factorisations),
        (flops.moment_products, flops.factorisations),
    ):
        assert 0.0 <= products <= every
        assert products < every or every == 0.0


def test_a_cpu_has_the_rates_of_the_reference() -> None:
    assert machine_rates(None, 2) is REFERENCE_RATES
    assert REFERENCE_RATES.path == "float64"


def test_factorisations_take_the_path_of_the_class() -> None:
    assert machine_rates(H100, 2).path == "float64"
    rates = machine_rates(L4, 2)
    assert rates.path == "mixed"
    assert rates.factorisations / rates.moment_products == pytest.approx(32.0)
    assert machine_rates(L4, 4).products == pytest.approx(rates.products / 4)


def test_factorisations_in_float32_save_most_of_their_time_on_slow_gpus() -> None:
    geometry, rates = LLAMAS["Llama-3-8B"], machine_rates(L4, 2)
    in_float64 = rates.factorisations * L4.float64_share
    slow = replace(
        rates,
        factorisations=in_float64,
        eliminations=rates.eliminations * L4.float64_share,
    )
    config = CompressionConfig(ratio=0.3)
    seconds = [stage_seconds(geometry, config, None, 2, own) for own in (slow, rates)]
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
