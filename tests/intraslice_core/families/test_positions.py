"""Sequences longer than a table of learned positions are rejected before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
    SpeedPoint,
)
from intraslice_core.errors import ConfigurationError
from intraslice_core.evaluation.comparison import evaluate_one
from intraslice_core.families.positions import learned_positions, require_lengths
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.tiny_models import tiny_checkpoint

FITTING = CompressionConfig(calibration=CalibrationConfig(sequence_length=64, samples=8))
PLAIN = {"perplexity": (), "benchmark": False}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_type": "opt", "max_position_embeddings": 64}, 64),
        ({"model_type": "opt"}, 2048),
        ({"model_type": "intraslice", "position_rows": 66, "position_offset": 2}, 64),
        ({"model_type": "intraslice", "position_rows": 0, "position_offset": 0}, None),
        ({"model_type": "llama", "max_position_embeddings": 64}, None),
        ({"model_type": "opt", "max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_only_a_table_of_positions_limits_lengths(
    settings: dict[str, Any], expected: int | None
) -> None:
    assert learned_positions(settings) == expected


@pytest.mark.parametrize(
    ("compression", "evaluation", "field"),
    [
        ({"calibration": {"sequence_length": 65}}, None, "compression.calibration.sequence_length"),
        ({"recover": RecoveryConfig(sequence_length=65)}, None, "compression.recover.seq"),
        ({}, {"context_length": 65, "benchmark": False}, "evaluation.context_length"),
        ({}, PLAIN | {"speed_grid": (SpeedPoint(context_length=33),)}, "evaluation.speed_grid"),
    ],
)
def test_longer_sequences_are_rejected_by_name(
    compression: dict[str, Any], evaluation: dict[str, Any] | None, field: str
) -> None:
    config = CompressionConfig.model_validate(FITTING.model_dump() | compression)
    measured = EvaluationConfig(**evaluation) if evaluation else None
    with pytest.raises(ConfigurationError, match=r"table of 64 learned positions") as caught:
        require_lengths(64, config, measured)
    assert (caught.value.field or "").startswith(field)
    require_lengths(None, config, measured)


def test_lengths_that_fit_are_accepted() -> None:
    grid = (SpeedPoint(context_length=32),)
    fitting = EvaluationConfig(context_length=64, benchmark=False, speed_grid=grid)
    require_lengths(64, FITTING, fitting)
    require_lengths(64, None, EvaluationConfig(**PLAIN))


def test_too_long_sequences_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", "opt", max_position_embeddings=32)
    with pytest.raises(ConfigurationError, match="64 tokens are longer"):
        compress_model(str(dense), tmp_path / "out", FITTING)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError, match="512 tokens are longer"):
        evaluate_one(dense, EvaluationConfig())
