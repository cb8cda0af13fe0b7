"""Settings accept exactly one budget, and errors name the field and the fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from intraslice_core.config import Allocation, CompressionConfig, CompressionSettings, Method
from intraslice_core.methods import resolve_allocator


@pytest.mark.parametrize(
    ("settings", "field", "ratio"),
    [
        ({}, "ratio", 0.3),
        ({"ratio": None}, "ratio", 0.3),
        ({"ratio": 0.0}, "ratio", 0.0),
        ({"target_params": 10}, "target_params", None),
        ({"target_bytes": 10, "ratio": None}, "target_bytes", None),
    ],
)
def test_one_budget_is_accepted_and_ratio_is_the_default(
    settings: dict[str, Any], field: str, ratio: float | None
) -> None:
    config = CompressionConfig(**settings)
    assert (config.budget_field, config.ratio) == (field, ratio)
    assert CompressionConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "rejected_fields"),
    [
        ({"ratio": 0.3, "target_params": 10}, ["target_params"]),
        ({"ratio": 0.0, "target_bytes": 10}, ["target_bytes"]),
        ({"target_params": 10, "target_bytes": 10}, ["target_bytes"]),
        ({"ratio": 0.3, "target_params": 1, "target_bytes": 1}, ["target_params", "target_bytes"]),
    ],
)
def test_a_second_budget_is_rejected_by_field_with_the_fix(
    settings: dict[str, Any], rejected_fields: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        CompressionConfig(**settings)
    errors = caught.value.errors()
    assert [error["loc"] for error in errors] == [(field,) for field in rejected_fields]
    assert {error["type"] for error in errors} == {"one_budget"}
    assert all("leave out" in error["msg"] for error in errors)


@pytest.mark.parametrize(
    ("method", "allocation", "expected"),
    [
        ("intraslice_plus", "auto", "lagrangian"),
        ("intraslice", "auto", "fisher_pca"),
        ("magnitude", "auto", "uniform"),
        ("intraslice", "uniform", "uniform"),
        ("intraslice_plus", "fisher", "fisher"),
    ],
)
def test_auto_resolves_to_the_methods_own_allocator(
    method: Method, allocation: Allocation, expected: str
) -> None:
    settings = CompressionSettings(method=method, allocation=allocation)
    assert resolve_allocator(settings) == expected


@pytest.mark.parametrize(
    "settings",
    [{"module_cap": 0.0}, {"module_cap": 1.1}, {"attention_bias": 0.0}, {"target_bytes": 0}],
)
def test_settings_out_of_range_are_rejected_by_field(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CompressionConfig(**settings)


@pytest.mark.parametrize("devices", [0, 65, 1.5])
def test_numbers_of_devices_out_of_range_are_rejected(devices: float) -> None:
    with pytest.raises(ValidationError, match="devices"):
        CompressionConfig.model_validate({"devices": devices})


def test_several_devices_of_one_gpu_are_rejected() -> None:
    assert CompressionConfig(device="cuda", devices=4).devices == 4
    assert CompressionConfig(device="cuda:1", devices=1).devices == 1
    with pytest.raises(ValidationError, match="cuda:1 is a single device, not 2: write cuda"):
        CompressionConfig(device="cuda:1", devices=2)


def test_every_device_needs_a_calibration_sequence() -> None:
    calibration = {"samples": 8}
    CompressionConfig.model_validate({"devices": 8, "calibration": calibration})
    with pytest.raises(ValidationError, match="9 devices cannot divide 8 calibration sequences"):
        CompressionConfig.model_validate({"devices": 9, "calibration": calibration})


def test_the_old_method_name_is_rejected_with_the_new_name() -> None:
    with pytest.raises(ValidationError, match="method 'paper' is now called 'intraslice'") as error:
        CompressionConfig.model_validate({"method": "paper"})
    assert error.value.errors()[0]["loc"] == ("method",)
    assert "'intraslice_plus'" in str(error.value)


def test_the_default_method_is_intraslice_plus() -> None:
    assert CompressionConfig().method == "intraslice_plus"
