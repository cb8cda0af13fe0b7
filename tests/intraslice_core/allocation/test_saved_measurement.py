"""An interrupted measurement of the sensitivity resumes to the bits of an undisturbed one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from intraslice_core.allocation import saved_measurement
from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.estimators import (
    GRADIENT_SHARE,
    CalibrationSplit,
    fisher_shapes,
    measure_sensitivity,
)
from intraslice_core.allocation.saved_measurement import SavedMeasurement, gradient_bytes
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.resume_state import ResumeState
from intraslice_core.sensitivity import gradients, measurement
from intraslice_core.sensitivity.measurement import ModelSensitivity
from tests.intraslice_core.tiny_models import tiny_llama

LAYERS = 3
NEVER, ALWAYS = math.inf, 0.0
"""Seconds between two saves of the hidden states."""
CPU = torch.device("cpu")
TOKENS = torch.randint(3, 250, (10, 16), generator=torch.Generator().manual_seed(0))
SPLIT = CalibrationSplit.of(TOKENS)


@dataclass
class Attempts:
    """Attempts to measure one model, and what they have done."""

    dense: Path
    state: Path
    interval: float = NEVER
    key: str = "key"
    measured: list[int] = field(default_factory=list)
    """Numbers of the layers that were measured."""
    replayed: list[int] = field(default_factory=list)
    """Numbers of the layers of batches that passed a measured layer again."""
    reported: list[float] = field(default_factory=list)
    """Finished fractions of the last attempt."""
    resumed: list[tuple[float, float]] = field(default_factory=list)
    """Restored parts of the last attempt."""
    unsaved: list[str] = field(default_factory=list)

    def saved(self, reader: CheckpointReader) -> SavedMeasurement:
        return SavedMeasurement(
            resume_state=ResumeState(
                directory=self.state, hidden_states_every_seconds=self.interval
            ),
            key=self.key,
            geometry=reader.family.geometry(reader.config),
            on_unsaved=self.unsaved.append,
        )

    def before_batch(self, checks: float) -> Callable[[float], None]:
        """Return a callback that stops the attempt after a number of batches."""
        self.reported.clear()
        self.resumed.clear()

        def before_batch(done: float) -> None:
            if len(self.reported) >= checks:
                raise CompressionCancelledError("stopped")
            self.reported.append(done)

        return before_batch

    def measure(self, *, checks: float = math.inf, is_saved: bool = True) -> ModelSensitivity:
        """Measure, and stop after a number of batches."""
        with CheckpointReader(self.dense) as reader, torch.inference_mode():
            return measure_sensitivity(
                DenseLayerReader(reader, CPU, torch.float32),
                SPLIT,
                batch_size=4,
                before_batch=self.before_batch(checks),
                saved=self.saved(reader) if is_saved else None,
                on_resumed=lambda begin, end: self.resumed.append((begin, end)),
            )

    def measure_until_finished(self) -> tuple[ModelSensitivity, int]:
        """Stop after more batches each time; return the result and the number of attempts."""
        for attempts in range(1, 30):
            try:
                return self.measure(checks=6 + attempts), attempts
            except CompressionCancelledError:
                continue
        raise AssertionError("no attempt gets further than the one before")

    def files(self) -> list[str]:
        return sorted(file.name for file in self.state.iterdir())


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    made = Attempts(dense=tiny_llama(tmp_path / "dense"), state=tmp_path / "state")
    layer_pass = measurement._LayerPass
    sensitivity, replay = layer_pass.sensitivity, layer_pass.replay

    def counted_sensitivity(self, *arguments):
        made.measured.append(self.layer)
        return sensitivity(self, *arguments)

    def counted_replay(self, hidden):
        made.replayed.append(self.layer)
        return replay(self, hidden)

    monkeypatch.setattr(layer_pass, "sensitivity", counted_sensitivity)
    monkeypatch.setattr(layer_pass, "replay", counted_replay)
    # Two sequences in a part of the gradients' pass, which then has several parts.
    monkeypatch.setattr(gradients, "_TOKENS_AT_ONCE", 32)
    return made


def assert_same(measured: ModelSensitivity, expected: ModelSensitivity) -> None:
    assert len(measured.layers) == LAYERS
    assert measured.trials == expected.trials
    for layer, other in zip(measured.layers, expected.layers, strict=True):
        assert layer.tensors().keys() == other.tensors().keys()
        for name, part in layer.tensors().items():
            assert torch.equal(part, getattr(other, name)), name


@pytest.mark.parametrize("interval", [NEVER, ALWAYS])
def test_a_measurement_that_is_stopped_again_and_again_ends_with_the_same_bits(
    attempts: Attempts, interval: float
) -> None:
    expected = attempts.measure(is_saved=False)
    assert len(expected.trials) > 0
    assert attempts.measured == [*range(LAYERS)]
    attempts.measured.clear()
    attempts.interval = interval
    measured, count = attempts.measure_until_finished()
    assert count > 5
    assert_same(measured, expected)
    assert attempts.measured == [*range(LAYERS)], "each layer is measured once"
    assert bool(attempts.replayed) == (interval == NEVER)
    assert [name[:9] for name in attempts.files()] == ["measured-"] * LAYERS
    assert attempts.unsaved == []


def test_a_measurement_stopped_before_a_layer_passes_no_layer_again(attempts: Attempts) -> None:
    expected = attempts.measure(is_saved=False)
    first = attempts.reported.index(GRADIENT_SHARE)
    batches = (len(attempts.reported) - first) // LAYERS
    with pytest.raises(CompressionCancelledError):
        attempts.measure(checks=first + 2 * batches)
    attempts.measured.clear()
    measured = attempts.measure()
    assert_same(measured, expected)
    assert attempts.measured == [2]
    assert attempts.replayed == []
    share = GRADIENT_SHARE + (1 - GRADIENT_SHARE) * 2 / LAYERS
    assert attempts.resumed == [(0.0, GRADIENT_SHARE), (GRADIENT_SHARE, pytest.approx(share))]
    assert attempts.reported[0] == pytest.approx(share)


def test_gradients_resume_after_the_last_part_and_keep_what_a_part_has_added(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    joined = gradients.LayerGradients.joined

    def counted(self, *arguments, **options):
        added.append(self.tokens)
        return joined(self, *arguments, **options)

    monkeypatch.setattr(gradients.LayerGradients, "joined", counted)
    expected = attempts.measure(is_saved=False)
    total = sorted(added)
    added.clear()
    per_part = 2 * LAYERS
    for checks in (2 * per_part + LAYERS + 2, per_part):
        with pytest.raises(CompressionCancelledError):
            attempts.measure(checks=checks)
    assert attempts.resumed == [(0.0, pytest.approx(GRADIENT_SHARE * 2 / 5))]
    assert_same(attempts.measure(), expected)
    assert sorted(added) == total, "no part is added twice"


def test_gradients_are_not_computed_for_measured_layers(attempts: Attempts) -> None:
    """As on another machine, which has the layers but not the gradients."""
    expected = attempts.measure(is_saved=False)
    with pytest.raises(CompressionCancelledError):
        attempts.measure(checks=len(attempts.reported) - 1)
    for file in (*attempts.state.glob("local-*"), *attempts.state.glob("hidden-states*")):
        file.unlink()
    attempts.measured.clear()
    assert_same(attempts.measure(), expected)
    assert attempts.measured == [2]
    assert set(attempts.replayed) == {0, 1}


def test_layers_of_other_settings_are_not_used(attempts: Attempts) -> None:
    attempts.measure()
    attempts.measured.clear()
    attempts.key = "other"
    attempts.measure()
    assert attempts.measured == [*range(LAYERS)]


def test_a_damaged_layer_is_measured_again_with_a_warning_in_the_log(
    attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    expected = attempts.measure()
    file = attempts.state / attempts.files()[-1]
    file.write_bytes(file.read_bytes()[:-1])
    attempts.measured.clear()
    with caplog.at_level(logging.WARNING):
        assert_same(attempts.measure(), expected)
    assert attempts.measured == [2]
    assert f"{file} is damaged and is not used" in caplog.text


def test_damaged_gradients_are_computed_again_with_a_warning_in_the_log(
    attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    expected = attempts.measure(is_saved=False)
    with pytest.raises(CompressionCancelledError):
        attempts.measure(checks=attempts.reported.index(GRADIENT_SHARE))
    file = attempts.state / "local-gradients-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert_same(attempts.measure(), expected)
    assert attempts.resumed == []
    assert f"{file} is damaged and is not used" in caplog.text


def test_without_room_in_the_state_gradients_are_temporary(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attempts.measure(is_saved=False)
    monkeypatch.setattr(saved_measurement, "gradient_bytes", lambda *_: 2**62)
    assert_same(attempts.measure(), expected)
    assert attempts.unsaved == [
        f"{attempts.state} has no room for gradients: an interrupted run repeats them"
    ]


def test_the_size_of_the_gradients_is_that_of_their_files(attempts: Attempts) -> None:
    with CheckpointReader(attempts.dense) as reader:
        needed = gradient_bytes(reader.family.geometry(reader.config), len(SPLIT.metric))
    attempts.measure(is_saved=False)
    with pytest.raises(CompressionCancelledError):
        attempts.measure(checks=attempts.reported.index(GRADIENT_SHARE))
    written = sum(file.stat().st_size for file in attempts.state.glob("local-gradients-*"))
    assert needed < written < needed + LAYERS * 2000  # headers


def test_gradients_of_the_papers_estimator_resume(attempts: Attempts) -> None:
    config = CompressionConfig(ratio=0.3, round_to=2, batch_size=4)
    with CheckpointReader(attempts.dense) as reader, torch.inference_mode():
        geometry = reader.family.geometry(reader.config)
        budget = compression_budget(config, geometry, 4)

        def shapes(checks: float, saved: SavedMeasurement | None) -> object:
            return fisher_shapes(
                DenseLayerReader(reader, CPU, torch.float32),
                SPLIT,
                geometry,
                budget.parameters,
                config,
                rotated=True,
                before_batch=attempts.before_batch(checks),
                saved=saved,
                on_resumed=lambda done: attempts.resumed.append((0.0, done)),
            )

        expected = shapes(math.inf, None)
        total = len(attempts.reported)
        with pytest.raises(CompressionCancelledError):
            shapes(total - 1, attempts.saved(reader))
        assert shapes(math.inf, attempts.saved(reader)) == expected
        assert attempts.resumed == [(0.0, pytest.approx(3 / 4))]
        assert len(attempts.reported) == total // 4
        assert attempts.files() == ["fisher-scores-key.safetensors"]
        assert shapes(0, attempts.saved(reader)) == expected, "scores are computed once"
        assert attempts.resumed == [(0.0, 1.0)]
