"""Options of the training of masks."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli import settings_options
from app.cli.settings_options import SettingsOptions
from intraslice_core.config import CompressionConfig, MaskTrainingConfig
from intraslice_core.errors import ConfigurationError

DEFAULTS = {name: default for name, (_, default) in settings_options._OPTIONS.items()}


def training(**values: Any) -> MaskTrainingConfig | None:
    options = SettingsOptions(values=DEFAULTS | values)
    return CompressionConfig.model_validate(options.compression()).mask_training


def test_masks_are_trained_if_a_bound_is_given() -> None:
    assert training() is None
    assert training(mask_tokens="200K") == MaskTrainingConfig(max_tokens=200_000)
    assert training(mask_seconds=60.0) == MaskTrainingConfig(max_seconds=60.0)
    both = training(mask_tokens="1M", mask_seconds=5.0)
    assert both == MaskTrainingConfig(max_tokens=1_000_000, max_seconds=5.0)


def test_a_malformed_number_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ConfigurationError, match="--mask-tokens"):
        training(mask_tokens="many")
