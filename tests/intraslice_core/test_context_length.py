"""Sequences beyond a model's context are warnings, and measurements adapt to it."""

from __future__ import annotations

import pytest

from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
)
from intraslice_core.context_length import beyond_context, context_of
from intraslice_core.evaluation import timing

COMPRESSION = CompressionConfig(
    calibration=CalibrationConfig(sequence_length=600),
    recover=RecoveryConfig(sequence_length=700),
)
EVALUATION = EvaluationConfig.model_validate(
    {"context_length": 800, "speed_grid": [{"context_length": 900}, {"context_length": 100}]}
)


def test_every_setting_beyond_the_context_is_named_with_both_lengths() -> None:
    warnings = beyond_context(512, COMPRESSION, EVALUATION)
    names = ("calibration.sequence_length 600", "recover.sequence_length 700")
    names += ("evaluation.context_length 800", "evaluation.speed_grid context_length 900")
    assert len(warnings) == len(names)
    for warning, name in zip(warnings, names, strict=True):
        assert warning.startswith(f"{name} exceeds the model's context of 512 tokens")


def test_sequences_within_the_context_are_no_warnings() -> None:
    assert beyond_context(900, COMPRESSION, EVALUATION) == ()
    assert beyond_context(None, COMPRESSION, EVALUATION) == ()
    assert beyond_context(16, None, None) == ()


def test_context_of_a_multimodal_model_is_that_of_its_text_model() -> None:
    assert context_of({"text_config": {"max_position_embeddings": 64}}) == 64
    assert context_of({"max_position_embeddings": 128, "text_config": None}) == 128
    assert context_of({"max_position_embeddings": "many"}) is None


@pytest.mark.parametrize(("context", "prompt"), [(None, 256), (4096, 256), (128, 96), (8, 1)])
def test_benchmark_fits_the_context(context: int | None, prompt: int) -> None:
    assert timing._benchmark_prompt(context) == prompt
