"""Budgets by ratio, parameters and bytes agree, and unreachable ones are rejected with bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intraslice_core.allocation.budget import compression_budget, smallest_plan
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.cost_model import estimate
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import total_parameters
from tests.intraslice_core.smollm2 import SMOLLM2
from tests.intraslice_core.tiny_models import tiny_llama

DENSE = SMOLLM2.dense_plan().parameters(SMOLLM2)
WHOLE = 134_515_008
FILE_BYTES = 269_095_560
"""Size of the dense model as the engine writes it in bfloat16, with 64 KiB of header."""


def config_of(**settings: Any) -> CompressionConfig:
    return CompressionConfig(**settings)


def test_dense_budgets_remove_nothing() -> None:
    for config in (
        config_of(ratio=0),
        config_of(target_params=WHOLE),
        config_of(target_bytes=FILE_BYTES),
    ):
        budget = compression_budget(config, SMOLLM2, 2)
        assert (budget.parameters, budget.ratio) == (DENSE, 0.0)
        plan = uniform_plan(SMOLLM2, budget.ratio, config.round_to)
        assert plan == SMOLLM2.dense_plan()


@given(ratio=st.floats(0.0, 0.85))
def test_ratio_parameters_and_bytes_of_the_same_size_agree(ratio: float) -> None:
    by_ratio = compression_budget(config_of(ratio=ratio), SMOLLM2, 2)
    assert by_ratio.ratio == ratio
    total = WHOLE - DENSE + by_ratio.parameters
    by_total = compression_budget(config_of(target_params=total), SMOLLM2, 2)
    assert by_total.parameters == by_ratio.parameters
    assert by_total.ratio == pytest.approx(ratio, abs=1e-8)
    by_bytes = compression_budget(config_of(target_bytes=2 * total), SMOLLM2, 2)
    assert 0 <= by_ratio.parameters - by_bytes.parameters <= 0.001 * DENSE


@pytest.mark.parametrize(
    ("settings", "field", "hint"),
    [
        ({"target_params": WHOLE + 1}, "target_params", f"at most {WHOLE:,}"),
        ({"target_bytes": FILE_BYTES + 1}, "target_bytes", f"at most {FILE_BYTES:,}"),
        ({"target_params": 28_000_000}, "target_params", "larger module_cap"),
        ({"target_params": 28_000_000, "allocation": "uniform"}, "target_params", "at least"),
        ({"target_bytes": 100}, "target_bytes", "bytes, or"),
        ({"ratio": 0.95}, "ratio", "ratio of at most 0.9000"),
        ({"ratio": 0.5, "module_cap": 0.3}, "ratio", "ratio of at most 0.3000"),
        ({"ratio": 0.999, "method": "magnitude"}, "ratio", "at most 0.9648"),
    ],
)
def test_unreachable_budgets_are_rejected_with_their_bound(
    settings: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(BudgetOutOfReachError) as caught:
        compression_budget(config_of(**settings), SMOLLM2, 2)
    assert caught.value.field == f"compression.{field}"
    assert hint in (caught.value.hint or "")


def test_bounds_in_error_hints_are_reachable() -> None:
    for field in ("target_params", "target_bytes"):
        with pytest.raises(BudgetOutOfReachError) as caught:
            compression_budget(config_of(**{field: 100}), SMOLLM2, 2)
        bound = int("".join(filter(str.isdigit, (caught.value.hint or "").partition(" or ")[0])))
        assert compression_budget(config_of(**{field: bound}), SMOLLM2, 2).parameters > 0
        with pytest.raises(BudgetOutOfReachError):
            compression_budget(config_of(**{field: bound - 2}), SMOLLM2, 2)


def test_uniform_may_remove_more_of_a_module_than_the_cap() -> None:
    config = config_of(ratio=0.95, allocation="uniform")
    assert compression_budget(config, SMOLLM2, 2).parameters == round(0.05 * DENSE)
    assert smallest_plan(SMOLLM2, 8).layers[0].qk_head_dim == 8


@pytest.mark.parametrize("settings", [{"target_params": 110_000_000}, {"target_bytes": 22 * 10**7}])
def test_estimate_has_the_requested_size(settings: dict[str, Any]) -> None:
    estimated = estimate(SMOLLM2, 2, config_of(**settings), None)
    assert estimated.params_after == pytest.approx(110_000_000, rel=0.001)
    assert estimated.achieved_ratio == pytest.approx(1 - estimated.compressible_after / DENSE)


@pytest.mark.parametrize("field", ["target_params", "target_bytes"])
def test_result_has_the_requested_size(tmp_path: Path, field: str) -> None:
    dense = tiny_llama(tmp_path / "dense")
    calibration = CalibrationConfig(source="pydoc", samples=4, sequence_length=32)
    target = {"target_params": 60_000, "target_bytes": 240_000}[field]
    config = config_of(
        **{field: target},
        allocation="uniform",
        round_to=2,
        dtype="float32",
        calibration=calibration,
    )
    report = compress_model(str(dense), tmp_path / "out", config, verify=False)
    size = {"target_params": report.params_after, "target_bytes": report.bytes_after}[field]
    assert size == pytest.approx(target, rel=0.005)
    assert report.params_before == total_parameters(report.geometry, report.geometry.dense_plan())
