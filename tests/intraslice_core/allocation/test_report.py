"""The report names the allocator and has the predicted losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.reports.model_card import write_model_card
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.reports.samples import PRICED, report

REASON = "the calibration loss was 3.21, with equal layers it is 3.2"


def test_predicted_losses_of_all_modules_are_reported_and_add_up() -> None:
    section = allocation_report("auto", "lagrangian", PRICED, weighting="fisher")
    assert section.predicted_loss == pytest.approx(3.0)
    assert [(layer.layer, layer.attention, layer.mlp) for layer in section.layers] == [
        (0, 0.0, 0.0),
        (1, 0.25, 0.5),
        (2, 0.25, 0.5),
        (3, 1.5, 0.0),
    ]
    assert (section.fell_back, section.fallback_reason) == (False, None)


def test_a_fallback_is_reported_with_its_reason_and_both_losses() -> None:
    section = allocation_report(
        "lagrangian",
        "uniform",
        fallback_reason=REASON,
        calibration_loss=3.21,
        uniform_calibration_loss=3.2,
    )
    assert (section.fell_back, section.fallback_reason) == (True, REASON)
    assert (section.calibration_loss, section.uniform_calibration_loss) == (3.21, 3.2)
    assert (section.predicted_loss, section.layers) == (None, ())


def test_reports_of_earlier_versions_are_read() -> None:
    current = report(allocation_report("auto", "lagrangian", PRICED))
    assert CompressionReport.model_validate_json(current.model_dump_json()) == current
    old = current.model_dump(mode="json")
    del old["allocation"]
    for setting in ("allocation", "module_cap", "attention_bias", "target_params", "target_bytes"):
        del old["config"][setting]
    assert CompressionReport.model_validate(old).allocation is None


def test_model_card_names_the_allocator(tmp_path: Path) -> None:
    def card(content: CompressionReport) -> str:
        return write_model_card(tmp_path, content).read_text()

    assert "were chosen by" not in card(report())
    assert "were chosen by allocator `lagrangian`." in card(
        report(allocation_report("auto", "lagrangian"))
    )
    fallen = allocation_report("fisher", "uniform", fallback_reason=REASON)
    assert f"by allocator `uniform` instead of the requested `fisher`: {REASON}." in card(
        report(fallen)
    )
