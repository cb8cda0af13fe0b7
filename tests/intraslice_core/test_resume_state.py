"""A run that goes on where another was stopped ends with the bytes of an undisturbed one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core import pipeline
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from tests.intraslice_core.tiny_models import VARIANTS, tiny_checkpoint, tiny_llama

LAYERS = 3
NEVER, ALWAYS = math.inf, 0.0
"""How often the streams are kept."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume_state")
    return tiny_llama(folder / "dense", **VARIANTS["biased"])


def config(**changes: Any) -> CompressionConfig:
    calibration = CalibrationConfig(source="pydoc", samples=12, sequence_length=32)
    settings = {
        "ratio": 0.3,
        "round_to": 2,
        "allocation": "uniform",
        "dtype": "float32",
        "batch_size": 5,
    } | changes
    return CompressionConfig(calibration=calibration, **settings)


def compress(
    dense: Path,
    out: Path,
    config: CompressionConfig,
    resume_state: ResumeState | None,
    should_cancel: Callable[[], bool] = never_cancelled,
) -> CompressionReport:
    run = Run(on_progress=ignore_progress, should_cancel=should_cancel, resume_state=resume_state)
    return pipeline._compress_checkpoint(
        OpenedModel(reference=str(dense), directory=dense), out, config, run
    )


def stopped_after(questions: int) -> Callable[[], bool]:
    """Cancels at that many-th look, which is somewhere between two batches."""
    asked = 0

    def should_cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > questions

    return should_cancel


def files_of(checkpoint: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()
    }


def kept(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were compressed, which is the work to be saved."""
    done: list[int] = []
    run = LayerCompressor.run

    def counted(self: LayerCompressor) -> Any:
        done.append(self._context.layer)
        return run(self)

    monkeypatch.setattr(LayerCompressor, "run", counted)
    return done


@pytest.mark.parametrize("streams", [NEVER, ALWAYS])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "intraslice"},
        {"method": "magnitude"},
        {"dtype": "bfloat16"},
        {"ratio": 0.0},
    ],
    ids=["intraslice_plus", "intraslice", "magnitude", "bfloat16", "nothing removed"],
)
def test_every_interruption_ends_with_the_same_bytes(
    dense: Path, tmp_path: Path, solved: list[int], changes: dict[str, Any], streams: float
) -> None:
    go_on_until_finished(dense, tmp_path, solved, config(**changes), streams)


@pytest.mark.parametrize("streams", [NEVER, ALWAYS])
@pytest.mark.parametrize("variant", ["qwen3", "phi", "gemma2"])
def test_every_interruption_of_every_kind_of_block_ends_with_the_same_bytes(
    tmp_path: Path, solved: list[int], variant: str, streams: float
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    go_on_until_finished(dense, tmp_path, solved, config(dtype="bfloat16"), streams)


def go_on_until_finished(
    dense: Path, tmp_path: Path, solved: list[int], settings: CompressionConfig, streams: float
) -> None:
    """Stop and go on, later each time, and compare with a run that nobody stopped."""
    whole = compress(dense, tmp_path / "whole", settings, None)
    solved.clear()
    place, attempts = tmp_path / "kept", 0
    while not (tmp_path / "out").exists():
        assert attempts < 10, "no attempt gets further than the one before"
        resume_state = ResumeState(directory=place, hidden_states_every_seconds=streams)
        try:
            # Longer each time: an attempt may walk over what the others have finished.
            stop = stopped_after(3 + 13 * attempts)
            report = compress(dense, tmp_path / "out", settings, resume_state, stop)
        except CompressionCancelledError:
            attempts += 1
    assert attempts > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    timeless = {"seconds", "peak_memory_bytes", "layers", "resumed_layers"}
    assert 0 <= report.resumed_layers <= LAYERS
    assert report.model_dump(exclude=timeless) == whole.model_dump(exclude=timeless)
    for ours, theirs in zip(report.layers, whole.layers, strict=True):
        assert ours.model_copy(update={"seconds": theirs.seconds}) == theirs
    # Begun again is the layer in which an attempt was stopped, and no layer that was finished.
    assert len(set(solved)) == LAYERS
    assert len(solved) <= LAYERS + attempts


def test_finished_layers_are_walked_over_once_or_not_at_all(
    dense: Path, tmp_path: Path, solved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[int] = []
    replay = LayerCompressor.replay

    def counted(self: LayerCompressor, weights: Any) -> None:
        walked.append(self._context.layer)
        replay(self, weights)

    monkeypatch.setattr(LayerCompressor, "replay", counted)
    for name, streams, expected in (("never", NEVER, [0, 1, 2]), ("always", ALWAYS, [])):
        place = tmp_path / name
        for out in ("first", "second"):
            walked.clear()
            resume_state = ResumeState(directory=place, hidden_states_every_seconds=streams)
            compress(dense, tmp_path / f"{name}-{out}", config(), resume_state)
        assert walked == expected
    assert solved == [0, 1, 2] * 2


def test_a_layer_that_is_damaged_or_gone_is_compressed_again(
    dense: Path, tmp_path: Path, solved: list[int]
) -> None:
    for name in ("first", "again"):
        resume_state = ResumeState(directory=tmp_path / "kept", hidden_states_every_seconds=ALWAYS)
        compress(dense, tmp_path / name, config(), resume_state)
        (tmp_path / "kept" / "layer-00000.safetensors").unlink(missing_ok=True)
        late = tmp_path / "kept" / "layer-00002.safetensors"
        late.write_bytes(late.read_bytes()[:-1])
    assert solved == [0, 1, 2, 0, 2]
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")


@pytest.mark.parametrize(
    "change", [{"ratio": 0.4}, {"batch_size": 3}, {"method": "intraslice"}, {"dtype": "bfloat16"}]
)
def test_what_another_run_would_not_make_is_not_found(
    dense: Path, tmp_path: Path, solved: list[int], change: dict[str, Any]
) -> None:
    for name, changes in (("first", {}), ("second", change)):
        resume_state = ResumeState(directory=tmp_path / "kept", hidden_states_every_seconds=ALWAYS)
        compress(dense, tmp_path / name, config(**changes), resume_state)
    assert solved == [0, 1, 2] * 2
    compress(dense, tmp_path / "alone", config(**change), None)
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")


def test_each_file_is_told_of_once_it_is_whole(dense: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    told: list[str] = []

    def on_saved(name: str) -> None:
        assert name in kept(place)
        told.append(name)

    compress(
        dense,
        tmp_path / "out",
        config(),
        ResumeState(directory=place, hidden_states_every_seconds=ALWAYS, on_saved=on_saved),
    )
    layers = [f"layer-{layer:05d}.safetensors" for layer in range(LAYERS)]
    sensitivity = told[1]
    assert sensitivity.startswith("sensitivity-")
    assert told == ["tokens.safetensors", sensitivity, *layers]
    hidden = "hidden-states.safetensors"
    assert kept(place) == [hidden, *layers, sensitivity, "tokens.safetensors"]


def test_no_room_for_the_streams_is_a_warning_and_no_reason_to_end(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    resume_state = ResumeState(directory=tmp_path / "kept", hidden_states_every_seconds=ALWAYS)
    save = resume_state._save

    def save_all_but_streams(name: str, *others: Any) -> None:
        full() if name == "hidden-states" else save(name, *others)

    monkeypatch.setattr(resume_state, "_save", save_all_but_streams)
    report = compress(dense, tmp_path / "out", config(), resume_state)
    assert report.warnings == ("the hidden states could not be saved: No space left on device",)


def test_streams_of_another_shape_are_left_alone(tmp_path: Path) -> None:
    resume_state = ResumeState(directory=tmp_path, hidden_states_every_seconds=ALWAYS)
    resume_state.save_hidden_states_if_due("key", {"compressed": torch.ones(2, 3)}, 1)
    wanted = {"compressed": torch.zeros(2, 4)}
    assert resume_state.restore_hidden_states("key", wanted, 1) == 0
    assert not wanted["compressed"].any()
