"""A report tells who chose the shapes and at what predicted price."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.checkpoints.model_card import write_model_card
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.reports.samples import PRICED, report

REASON = "the calibration loss was 3.21, with equal layers it is 3.2"


def test_prices_of_all_modules_are_told_and_add_up() -> None:
    told = allocation_report("auto", "lagrangian", PRICED, weighting="fisher")
    assert told.predicted_loss == pytest.approx(3.0)
    assert [(one.layer, one.attention, one.mlp) for one in told.layers] == [
        (0, 0.0, 0.0),
        (1, 0.25, 0.5),
        (2, 0.25, 0.5),
        (3, 1.5, 0.0),
    ]
    assert (told.fell_back, told.fallback_reason) == (False, None)


def test_a_fall_back_is_told_with_its_reason_and_both_losses() -> None:
    told = allocation_report(
        "lagrangian",
        "uniform",
        fallback_reason=REASON,
        calibration_loss=3.21,
        uniform_calibration_loss=3.2,
    )
    assert (told.fell_back, told.fallback_reason) == (True, REASON)
    assert (told.calibration_loss, told.uniform_calibration_loss) == (3.21, 3.2)
    assert (told.predicted_loss, told.layers) == (None, ())


def test_reports_of_earlier_versions_are_read() -> None:
    told = report(allocation_report("auto", "lagrangian", PRICED))
    assert CompressionReport.model_validate_json(told.model_dump_json()) == told
    old = told.model_dump(mode="json")
    del old["allocation"]
    for setting in ("allocation", "module_cap", "attention_bias", "target_params", "target_bytes"):
        del old["config"][setting]
    assert CompressionReport.model_validate(old).allocation is None


def test_model_card_names_the_allocator(tmp_path: Path) -> None:
    def card(told: CompressionReport) -> str:
        return write_model_card(tmp_path, told.model_dump(mode="json")).read_text()

    assert "were chosen by" not in card(report())
    assert "were chosen by allocator `lagrangian`." in card(
        report(allocation_report("auto", "lagrangian"))
    )
    fallen = allocation_report("fisher", "uniform", fallback_reason=REASON)
    assert f"by allocator `uniform` instead of the requested `fisher`: {REASON}." in card(
        report(fallen)
    )
