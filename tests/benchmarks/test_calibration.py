"""The comparison of calibration texts: which settings are measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from intraslice_core.config import OFFLINE_MIXTURE, CalibrationConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import calibration as module

    return module


def settings(
    module: Any, monkeypatch: pytest.MonkeyPatch, *options: str
) -> dict[str, CalibrationConfig]:
    """Return the settings of a command line."""
    monkeypatch.setattr(sys, "argv", ["calibration.py", "--corpus", "self", *options])
    configs: dict[str, CalibrationConfig] = module.calibrations(module.parse_arguments())
    return configs


def test_the_default_mixture_is_the_engines(
    calibration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = settings(calibration, monkeypatch, "--settings", "mixture").values()
    assert config.source == OFFLINE_MIXTURE


def test_every_mixture_is_a_setting_and_the_first_is_measured_with_more_text(
    calibration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtures = ["pydoc=1,self=3", "pydoc=2,chat=1"]
    options = [option for text in mixtures for option in ("--mixture", text)]
    configs = settings(
        calibration, monkeypatch, "--settings", "mixture,more", "--samples", "48", *options
    )
    weights = {
        name: [(part.source, part.weight) for part in config.sources]
        for name, config in configs.items()
    }
    first = [("pydoc", 1.0), ("self", 3.0)]
    assert weights == {mixtures[0]: first, mixtures[1]: [("pydoc", 2), ("chat", 1)], "more": first}
    assert [config.samples for config in configs.values()] == [48, 48, 96]
