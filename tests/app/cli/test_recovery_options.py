"""Options of recovery fine-tuning: every setting, with and without the prefix of `compress`."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import settings_options
from app.cli.main import app
from app.cli.recovery_options import OPTIONS, recovery_settings
from app.cli.settings_options import SettingsOptions
from intraslice_core.config import CompressionConfig, RecoveryConfig
from intraslice_core.errors import ConfigurationError

DEFAULTS = {name: default for name, (_, default) in settings_options._OPTIONS.items()}


def recover(**values: Any) -> RecoveryConfig | None:
    options = SettingsOptions(values=DEFAULTS | values)
    return CompressionConfig.model_validate(options.compression()).recover


def test_defaults_of_the_options_are_those_of_the_settings() -> None:
    assert recover() is None
    assert recover(recover="ce") == RecoveryConfig(loss="ce")


def test_every_setting_has_an_option() -> None:
    values = {name: default for name, (_, default) in OPTIONS.items()}
    settings = recovery_settings("distill", values, None)
    assert set(RecoveryConfig.model_fields) == set(settings)


def test_losses_schedule_and_temperature_reach_the_settings() -> None:
    config = recover(
        recover="distill",
        recover_auxiliary=["hidden=0.5", "ce=0.1"],
        recover_schedule="linear",
        recover_temperature=2.0,
        recover_rank=8,
        recover_weight_decay=0.1,
        recover_seed=7,
    )
    assert config is not None
    assert config.loss_weights.model_dump() == {"ce": 0.1, "distill": 1.0, "hidden": 0.5}
    assert (config.schedule, config.temperature, config.alpha) == ("linear", 2.0, 16.0)
    assert (config.weight_decay, config.seed) == (0.1, 7)


@pytest.mark.parametrize("weight", ["hidden", "hidden=much", "=", ""])
def test_a_malformed_weight_is_an_error_that_names_the_option(weight: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--recover-auxiliary: .*write LOSS=WEIGHT"):
        recover(recover="distill", recover_auxiliary=[weight])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--auxiliary", "kl=1"], "kl"),
        (["--auxiliary", "distill=1"], "repeats the loss"),
        (["--temperature", "0"], "temperature"),
        (["--weight-decay", "2"], "--weight-decay"),
        (["--tokens", "many"], "--tokens"),
    ],
)
def test_impossible_settings_of_recover_are_rejected(
    tmp_path: Any, options: list[str], message: str
) -> None:
    command = ["recover", "none", "--teacher", "none", "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in result.output
