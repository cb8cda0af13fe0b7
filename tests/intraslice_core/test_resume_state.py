"""An interrupted run resumes and ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from intraslice_core import pipeline
from intraslice_core.allocation import shapes
from intraslice_core.allocation.context import AllocationContext
from intraslice_core.allocation.search import TrialCompression
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.methods import METHODS
from intraslice_core.progress import ProgressEvent, Stage, ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.residual_layer import ResidualSlicer
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from intraslice_core.sensitivity.measurement import _LayerPass
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.tiny_models import VARIANTS, tiny_checkpoint, tiny_llama

LAYERS = 3
NEVER, ALWAYS = math.inf, 0.0
"""Seconds between two saves of the hidden states."""


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


def cancelled_after(checks: int) -> Callable[[], bool]:
    """Return a check that cancels the run after this number of checks, between two batches."""
    count = 0

    def should_cancel() -> bool:
        nonlocal count
        count += 1
        return count > checks

    return should_cancel


def has_measured_two_layers(state: Path) -> Callable[[], bool]:
    """Return a check that cancels the run once the sensitivity of the second layer is saved."""
    return lambda: bool([*state.glob("measured-*-00001.safetensors")])


def files_of(checkpoint: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()
    }


def saved(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the layers that were compressed, which is the work that a resume state saves."""
    done: list[int] = []

    def count(compressor: type[LayerCompressor] | type[ResidualSlicer]) -> None:
        run: Any = compressor.run

        def counted(self: Any) -> Any:
            done.append(self._context.layer)
            return run(self)

        monkeypatch.setattr(compressor, "run", counted)

    count(LayerCompressor)
    count(ResidualSlicer)
    return done


@pytest.mark.parametrize("interval", [NEVER, ALWAYS])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "intraslice"},
        {"method": "magnitude"},
        {"method": "flap", "allocation": "auto"},
        {"method": "wanda_sp"},
        {"method": "2ssp", "ratio": 0.5, "allocation": "auto"},
        {"method": "modegpt", "allocation": "auto"},
        {"method": "transact"},
        {"method": "shortgpt", "ratio": 0.45, "allocation": "auto"},
        {"method": "fusegpt", "ratio": 0.45, "allocation": "auto"},
        {"method": "slicegpt", "round_to": 1, "allocation": "auto"},
        {"method": "spp", "allocation": "auto"},
        {"method": "disp", "round_to": 1},
        {"method": "spp", "allocation": "auto", "mask_training": {"max_tokens": 32 * 6}},
        {"method": "disp", "round_to": 1, "mask_training": {"max_tokens": 32 * 6}},
        {"dtype": "bfloat16"},
        {"ratio": 0.0},
    ],
    ids=[
        *("intraslice_plus", "intraslice", "magnitude", "flap", "wanda_sp", "2ssp"),
        *("modegpt", "transact"),
        *("shortgpt", "fusegpt", "slicegpt", "spp", "disp"),
        *("spp with trained masks", "disp with trained masks"),
        *("bfloat16", "nothing removed"),
    ],
)
def test_interrupted_runs_resume_to_the_same_bytes(
    dense: Path, tmp_path: Path, solved: list[int], changes: dict[str, Any], interval: float
) -> None:
    resume_until_finished(dense, tmp_path, solved, config(**changes), interval)


@pytest.mark.parametrize("interval", [NEVER, ALWAYS])
@pytest.mark.parametrize("variant", ["qwen3", "phi", "gemma2"])
def test_interrupted_runs_of_every_layer_structure_resume_to_the_same_bytes(
    tmp_path: Path, solved: list[int], variant: str, interval: float
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    resume_until_finished(dense, tmp_path, solved, config(dtype="bfloat16"), interval)


@pytest.mark.parametrize("interval", [NEVER, ALWAYS])
def test_interrupted_runs_that_leave_sources_out_resume_to_the_same_bytes(
    dense: Path,
    tmp_path: Path,
    solved: list[int],
    interval: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_source = replace(METHODS[config().method], validation="left_out_source")
    monkeypatch.setitem(METHODS, config().method, by_source)
    resume_until_finished(dense, tmp_path, solved, config(), interval)


def resume_until_finished(
    dense: Path, tmp_path: Path, solved: list[int], settings: CompressionConfig, interval: float
) -> None:
    """Interrupt and resume, later each time, and compare with an uninterrupted run."""
    whole = compress(dense, tmp_path / "whole", settings, None)
    expected_layers = set(solved)  # whole layers are removed, or stay, without being solved
    solved.clear()
    place, attempts = tmp_path / "state", 0
    while not (tmp_path / "out").exists():
        assert attempts < 10, "no attempt gets further than the one before"
        resume_state = ResumeState(directory=place, hidden_states_every_seconds=interval)
        try:
            # Longer each time, since an attempt may replay the layers that others finished.
            stop = cancelled_after(3 + 13 * attempts)
            report = compress(dense, tmp_path / "out", settings, resume_state, stop)
        except CompressionCancelledError:
            attempts += 1
    assert attempts > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    timeless = {"seconds", "peak_memory_bytes", "layers", "resumed_layers"}
    assert 0 <= report.resumed_layers <= LAYERS
    assert report.model_dump(exclude=timeless) == whole.model_dump(exclude=timeless)
    for layer, expected in zip(report.layers, whole.layers, strict=True):
        assert layer.model_copy(update={"seconds": expected.seconds}) == expected
    # Only layers during which an attempt was cancelled are compressed again.
    assert set(solved) == expected_layers
    assert len(solved) <= len(expected_layers) + attempts


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the finished layers that the hidden states passed again."""
    passed: list[int] = []
    replay = LayerCompressor.replay

    def counted(self: LayerCompressor, weights: Any) -> None:
        passed.append(self._context.layer)
        replay(self, weights)

    monkeypatch.setattr(LayerCompressor, "replay", counted)
    return passed


@pytest.mark.parametrize("interval", [NEVER, ALWAYS])
def test_a_run_whose_layers_are_all_finished_passes_none_again(
    dense: Path, tmp_path: Path, solved: list[int], replayed: list[int], interval: float
) -> None:
    for out in ("first", "second"):
        state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=interval)
        compress(dense, tmp_path / out, config(), state)
    assert replayed == []
    assert solved == [0, 1, 2]


def test_hidden_states_that_lag_behind_pass_finished_layers_once_more(
    dense: Path, tmp_path: Path, solved: list[int], replayed: list[int]
) -> None:
    for out in ("first", "second"):
        state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=NEVER)
        compress(dense, tmp_path / out, config(), state)
        (tmp_path / "state" / "layer-00002.safetensors").unlink()
    assert replayed == [0, 1]
    assert solved == [0, 1, 2, 2]


def test_a_run_that_is_stopped_between_two_layers_resumes_with_the_next(
    dense: Path, tmp_path: Path, solved: list[int], replayed: list[int]
) -> None:
    place = tmp_path / "state"
    layer = place / "layer-00001.safetensors"
    state = ResumeState(directory=place, hidden_states_every_seconds=NEVER)
    with pytest.raises(CompressionCancelledError):
        compress(dense, tmp_path / "stopped", config(), state, layer.exists)
    assert solved == [0, 1, 2]  # the last was stopped before its first batch
    state = ResumeState(directory=place, hidden_states_every_seconds=NEVER)
    report = compress(dense, tmp_path / "resumed", config(), state)
    assert (solved, replayed) == ([0, 1, 2, 2], [])
    assert report.resumed_layers == 2
    assert state.was_used
    compress(dense, tmp_path / "whole", config(), None)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_a_damaged_or_missing_layer_is_compressed_again(
    dense: Path, tmp_path: Path, solved: list[int]
) -> None:
    for name in ("first", "again"):
        resume_state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=ALWAYS)
        compress(dense, tmp_path / name, config(), resume_state)
        (tmp_path / "state" / "layer-00000.safetensors").unlink(missing_ok=True)
        late = tmp_path / "state" / "layer-00002.safetensors"
        late.write_bytes(late.read_bytes()[:-1])
    assert solved == [0, 1, 2, 0, 2]
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")


@pytest.mark.parametrize(
    "change", [{"ratio": 0.4}, {"batch_size": 3}, {"method": "intraslice"}, {"dtype": "bfloat16"}]
)
def test_the_state_of_a_different_run_is_not_resumed(
    dense: Path, tmp_path: Path, solved: list[int], change: dict[str, Any]
) -> None:
    for name, changes in (("first", {}), ("second", change)):
        resume_state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=ALWAYS)
        compress(dense, tmp_path / name, config(**changes), resume_state)
    assert solved == [0, 1, 2] * 2
    compress(dense, tmp_path / "alone", config(**change), None)
    assert files_of(tmp_path / "second") == files_of(tmp_path / "alone")


def test_the_state_of_other_method_options_is_not_resumed(
    dense: Path, tmp_path: Path, solved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = METHODS[config().method]
    changes: tuple[dict[str, Any], ...] = (
        {"damping_own": options.damping_own[:1]},
        {"damping_own": (0.5,)},
        {},
        {"validation": "held_out"},
    )
    for number, change in enumerate(changes):
        monkeypatch.setitem(METHODS, config().method, replace(options, **change))
        resume_state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=ALWAYS)
        compress(dense, tmp_path / f"options-{number}", config(), resume_state)
    assert solved == [0, 1, 2] * len(changes)


def test_each_file_is_reported_once_it_is_complete(dense: Path, tmp_path: Path) -> None:
    place = tmp_path / "state"
    reported: list[str] = []

    def on_saved(name: str) -> None:
        assert name in saved(place)
        reported.append(name)

    compress(
        dense,
        tmp_path / "out",
        config(),
        ResumeState(directory=place, hidden_states_every_seconds=ALWAYS, on_saved=on_saved),
    )
    layers = [f"layer-{layer:05d}.safetensors" for layer in range(LAYERS)]
    measured, sensitivity = reported[1 : 1 + LAYERS], reported[1 + LAYERS]
    assert all(name.startswith("measured-") for name in measured)
    assert measured == sorted(set(measured))
    assert sensitivity.startswith("sensitivity-")
    assert reported == ["tokens.safetensors", *measured, sensitivity, *layers]
    hidden = "hidden-states.safetensors"
    assert saved(place) == [hidden, *layers, sensitivity, "tokens.safetensors"]


def test_a_full_disk_while_saving_hidden_states_is_a_warning(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    resume_state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=ALWAYS)
    save = resume_state._save

    def save_all_but_hidden_states(name: str, *others: Any) -> None:
        full() if name == "hidden-states" else save(name, *others)

    monkeypatch.setattr(resume_state, "_save", save_all_but_hidden_states)
    report = compress(dense, tmp_path / "out", config(), resume_state)
    assert report.warnings == ("the hidden states could not be saved: No space left on device",)


def test_hidden_states_of_another_shape_are_not_restored(tmp_path: Path) -> None:
    resume_state = ResumeState(directory=tmp_path, hidden_states_every_seconds=ALWAYS)
    resume_state.save_hidden_states("key", {"compressed": torch.ones(2, 3)}, 1)
    wanted = {"compressed": torch.zeros(2, 4)}
    assert resume_state.restore_hidden_states("key", wanted, 1) == 0
    assert not wanted["compressed"].any()


def test_the_reported_seconds_are_those_of_all_attempts_without_the_pause(
    dense: Path, tmp_path: Path
) -> None:
    place = tmp_path / "state"

    def attempt(should_cancel: Callable[[], bool]) -> CompressionReport:
        return pipeline.compress_model(
            str(dense),
            tmp_path / "out",
            config(),
            resume_state=ResumeState(directory=place),
            should_cancel=should_cancel,
            verify=False,
        )

    with pytest.raises(CompressionCancelledError):
        attempt((place / "layer-00000.safetensors").exists)
    with safe_open(place / "local-work.safetensors", framework="pt") as file:
        before = float(file.metadata()["seconds"])
    started = time.perf_counter()
    report = attempt(never_cancelled)
    assert 0.0 < before < report.seconds < before + time.perf_counter() - started


def test_the_work_of_an_attempt_that_failed_counts(tmp_path: Path) -> None:
    run = Run(
        on_progress=ignore_progress,
        should_cancel=never_cancelled,
        resume_state=ResumeState(directory=tmp_path),
    )
    with pytest.raises(NumericalError), run.counting_work("key"):
        raise NumericalError("a factorisation failed")
    assert ResumeState(directory=tmp_path).worked_seconds("key") > 0.0


@pytest.mark.parametrize(
    "changes", [{"method": "spp", "allocation": "auto"}, {"method": "disp", "round_to": 1}]
)
def test_a_stopped_training_of_masks_saves_the_step_that_it_had_reached(
    dense: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    messages: list[str] = []
    run = Run(
        on_progress=lambda event: messages.append(event.message),
        should_cancel=lambda: any(message.endswith("step 3") for message in messages),
        # Nothing is due for an hour: the state is saved by the stop.
        resume_state=ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=3600.0),
    )
    opened = OpenedModel(reference=str(dense), directory=dense)
    settings = config(**changes, mask_training={"max_tokens": 32 * 6})
    with pytest.raises(CompressionCancelledError):
        pipeline._compress_checkpoint(opened, tmp_path / "out", settings, run)
    (file,) = (tmp_path / "state").glob("training-*")
    assert file.name.startswith("training-00000003-")


def test_a_run_that_is_stopped_while_it_measures_resumes_with_the_next_layer(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    measure = _LayerPass.sensitivity

    def counted(self: _LayerPass, *arguments: Any) -> Any:
        measured.append(self.layer)
        return measure(self, *arguments)

    settings, place = config(allocation="lagrangian"), tmp_path / "state"
    whole = compress(dense, tmp_path / "whole", settings, None)
    monkeypatch.setattr(_LayerPass, "sensitivity", counted)
    state = ResumeState(directory=place, hidden_states_every_seconds=NEVER)
    with pytest.raises(CompressionCancelledError):
        compress(dense, tmp_path / "out", settings, state, has_measured_two_layers(place))
    assert "hidden-states.safetensors" in saved(place)
    assert [name for name in saved(place) if name.startswith("local-gradients-")]
    events: list[ProgressEvent] = []
    run = Run(
        on_progress=events.append,
        should_cancel=never_cancelled,
        resume_state=ResumeState(directory=place, hidden_states_every_seconds=NEVER),
    )
    opened = OpenedModel(reference=str(dense), directory=dense)
    report = pipeline._compress_checkpoint(opened, tmp_path / "out", settings, run)
    assert measured == [0, 1, 2]
    assert (report.plan, report.allocation) == (whole.plan, whole.allocation)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    left = [name for name in saved(place) if name.startswith(("measured-", "local-", "hidden-"))]
    assert left == []
    allocate = [event for event in events if event.stage is Stage.ALLOCATE]
    resumed = next(event for event in allocate if event.layer is not None)
    assert resumed.layer == 2
    assert resumed.fraction > run.shares[Stage.ALLOCATE][0]


def test_layers_measured_with_a_lowered_batch_are_kept(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    measured: list[int] = []
    measure = _LayerPass.sensitivity

    def measure_in_little_memory(self: _LayerPass, *arguments: Any) -> Any:
        calls.append(self.layer)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        measured.append(self.layer)
        return measure(self, *arguments)

    choose = shapes._measured

    def choose_after_a_stage_that_lowered(context: AllocationContext, *arguments: Any) -> Any:
        context.batch.size = 2
        return choose(context, *arguments)

    monkeypatch.setattr(_LayerPass, "sensitivity", measure_in_little_memory)
    settings, place = config(allocation="lagrangian"), tmp_path / "state"
    state = ResumeState(directory=place, hidden_states_every_seconds=NEVER)
    with monkeypatch.context() as first:
        first.setattr(shapes, "_measured", choose_after_a_stage_that_lowered)
        with pytest.raises(CompressionCancelledError):
            compress(dense, tmp_path / "out", settings, state, has_measured_two_layers(place))
    calls.clear()  # another process, whose device is as small
    compress(dense, tmp_path / "out", settings, ResumeState(directory=place))
    assert calls == [2, 2]
    assert measured == [0, 1, 2]


def test_a_run_that_shares_its_sensitivity_leaves_no_parts_and_has_a_copy(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, place = config(allocation="lagrangian"), tmp_path / "state"
    shared = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)

    def run(state: Path, should_cancel: Callable[[], bool] = never_cancelled) -> list[str]:
        pipeline._compress_checkpoint(
            OpenedModel(reference=str(dense), directory=dense),
            tmp_path / f"out-{state.name}",
            settings,
            Run(
                on_progress=ignore_progress,
                should_cancel=should_cancel,
                resume_state=ResumeState(directory=state, hidden_states_every_seconds=NEVER),
                statistics_cache=shared,
            ),
        )
        return [name for name in saved(state) if name.startswith(("measured-", "local-gr"))]

    with pytest.raises(CompressionCancelledError):
        run(place, has_measured_two_layers(place))
    assert run(tmp_path / "other") == []
    monkeypatch.setattr(_LayerPass, "sensitivity", None)  # nothing is measured again
    assert run(place) == []
    assert [name for name in saved(tmp_path / "other") if name.startswith("sensitivity-")]
    assert [*shared.directory.glob("sensitivity-*")]


def test_plans_are_compared_once(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    measure = TrialCompression.divergences

    def counted(self: TrialCompression, plans: Any, before_batch: Any) -> Any:
        compared.append(len(plans))
        return measure(self, plans, before_batch)

    monkeypatch.setattr(TrialCompression, "divergences", counted)
    settings = config(allocation="lagrangian")
    first, second = (
        compress(dense, tmp_path / out, settings, ResumeState(directory=tmp_path / "state"))
        for out in ("first", "second")
    )
    assert len(compared) == 1
    assert first.allocation == second.allocation
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
