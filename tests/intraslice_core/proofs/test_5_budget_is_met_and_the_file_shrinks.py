"""Proof 5: the parameter count is the requested one and the file shrinks accordingly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.errors import ConfigurationError
from tests.intraslice_core.proofs.conftest import Compressed
from tests.intraslice_core.smollm2 import SMOLLM2
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS


@settings(max_examples=100, deadline=None)
@given(ratio=st.floats(0.02, 0.8), round_to=st.sampled_from([2, 4, 8, 16, 32]))
def test_uniform_plan_meets_the_budget_on_a_real_geometry(ratio: float, round_to: int) -> None:
    plan = uniform_plan(SMOLLM2, ratio, round_to)
    budget = (1 - ratio) * SMOLLM2.dense_plan().parameters(SMOLLM2)
    assert abs(plan.parameters(SMOLLM2) - budget) <= 0.005 * budget
    for layer in plan.layers:
        for size, dense in ((layer.qk_head_dim, 64), (layer.v_head_dim, 64)):
            assert size == dense or size % round_to == 0
        assert layer.intermediate_size == 1536 or layer.intermediate_size % round_to == 0


def test_a_budget_that_rounding_cannot_meet_is_rejected_by_name() -> None:
    tiny = SMOLLM2.model_copy(
        update={"num_hidden_layers": 1, "intermediate_size": 64, "hidden_size": 48}
    )
    with pytest.raises(ConfigurationError, match="round_to"):
        uniform_plan(tiny, 0.3, 64)


def stored_parameters(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return sum(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_stored_parameters_and_bytes_follow_the_plan(
    compressed_family: Callable[[str], Compressed], variant: str
) -> None:
    compressed = compressed_family(variant)
    report = compressed.report
    assert abs(report.removed_fraction - 0.3) <= 0.005 * 0.7
    assert stored_parameters(compressed.dense / "model.safetensors") == report.params_before
    assert stored_parameters(compressed.out / "model.safetensors") == report.params_after
    removed = 4 * (report.params_before - report.params_after)
    assert report.bytes_before - report.bytes_after == pytest.approx(removed, rel=0.02)
    on_disk = sum(f.stat().st_size for f in compressed.out.glob("*.safetensors"))
    assert on_disk == report.bytes_after
