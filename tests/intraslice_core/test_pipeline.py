"""Compression runs: typed errors that leave no files, progress, report and model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from intraslice_core import errors, scratch
from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    ModelLimits,
)
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from intraslice_core.scratch import staging_directory
from tests.intraslice_core.tiny_models import tiny_llama

CONFIG = CompressionConfig(
    ratio=0.3,
    round_to=2,
    calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "dense")


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def rejection(
    dense: Path, expected: type[errors.IntraSliceError], config: CompressionConfig = CONFIG
) -> errors.IntraSliceError:
    """Return the error of a compression that is expected to fail and to leave no files."""
    folder, scratch = dense.parent, dense.parent / "scratch"
    scratch.mkdir()
    before = contents(folder)
    with pytest.raises(expected) as caught:
        compress_model(str(dense), folder / "out", config, work_dir=scratch)
    assert contents(folder) == before
    return caught.value


def edit_weights(dense: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(dense / "model.safetensors")
    change(tensors)
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})


def test_an_unknown_architecture_is_rejected(dense: Path) -> None:
    settings = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(settings | {"model_type": "gpt2"}))
    error = rejection(dense, errors.UnsupportedArchitectureError)
    assert "gpt2" in error.message
    assert "llama" in (error.hint or "")


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_rejected(ratio: float) -> None:
    with pytest.raises(ValidationError, match="ratio"):
        CompressionConfig(ratio=ratio)


def test_missing_weights_are_rejected(dense: Path) -> None:
    (dense / "model.safetensors").unlink()
    assert "model.safetensors" in rejection(dense, errors.BrokenCheckpointError).message


def test_truncated_weights_are_rejected(dense: Path) -> None:
    file = dense / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in rejection(dense, errors.BrokenCheckpointError).message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_non_finite_weight_in_a_late_layer_is_rejected(dense: Path, value: float) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    edit_weights(dense, lambda tensors: tensors[name].view(-1)[7].fill_(value))
    assert name in rejection(dense, errors.NonFiniteWeightError).message


@pytest.mark.parametrize("allocation", ["uniform", "fisher"])
def test_an_overflowing_activation_names_layer_and_module(dense: Path, allocation: str) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    edit_weights(dense, lambda tensors: tensors[name].fill_(3e38))
    config = CONFIG.model_copy(update={"allocation": allocation})
    error = rejection(dense, errors.NumericalError, config)
    assert isinstance(error, errors.NumericalError)
    assert (error.layer, error.module) == (1, "attention")


@pytest.mark.parametrize(("dtype", "advised"), [("float16", True), ("float32", False)])
def test_an_overflow_in_float16_advises_bfloat16(dense: Path, dtype: str, advised: bool) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    edit_weights(dense, lambda tensors: tensors[name].fill_(6e4 if advised else 3e38))
    config = CONFIG.model_copy(update={"dtype": dtype})
    error = rejection(dense, errors.NumericalError, config)
    assert ("bfloat16" in str(error)) is advised
    assert "layer 1" in str(error)


def test_an_overflow_in_text_that_the_model_writes_advises_bfloat16(dense: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    edit_weights(dense, lambda tensors: tensors[name].fill_(6e4))
    calibration = CalibrationConfig(source="self", samples=16, sequence_length=32)
    config = CONFIG.model_copy(update={"dtype": "float16", "calibration": calibration})
    assert "bfloat16" in str(rejection(dense, errors.NumericalError, config))


def test_an_absent_gpu_is_rejected_before_the_model_is_opened(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"device": "cuda:99"})
    error = rejection(tmp_path / "absent", errors.ConfigurationError, config)
    assert error.field == "device"


def test_a_calibration_text_that_is_too_short_is_rejected(dense: Path) -> None:
    text = dense.parent / "short.txt"
    text.write_text("too short")
    calibration = CalibrationConfig(source=str(text), samples=16, sequence_length=32)
    config = CONFIG.model_copy(update={"calibration": calibration})
    rejection(dense, errors.CalibrationTooShortError, config)


def test_left_overs_of_a_killed_run_are_removed_and_reported(dense: Path) -> None:
    folder = dense.parent
    left, lock = scratch._create(folder, ".out.staging-", "out")
    os.close(lock)  # as the kernel does when the process is killed
    report = compress_model(str(dense), folder / "out", CONFIG, verify=False)
    assert f"removed {left}, which an interrupted run had left behind" in report.warnings
    assert sorted(folder.iterdir()) == [dense, folder / "out"]


def test_running_compression_into_the_same_output_is_left_alone(dense: Path) -> None:
    with staging_directory(dense.parent / "out") as staging:
        staging.directory.joinpath("weights").touch()
        rejection(dense, errors.OutputInUseError)
        assert staging.directory.joinpath("weights").exists()


def test_link_to_an_empty_directory_is_an_output(dense: Path) -> None:
    link, target = dense.parent / "link", dense.parent / "disk" / "out"
    target.mkdir(parents=True)
    link.symlink_to(target)
    compress_model(str(dense), link, CONFIG, verify=False)
    assert link.is_symlink()
    assert (target / REPORT_FILE).is_file()
    assert sorted(target.parent.iterdir()) == [target]


def test_rounding_that_misses_the_budget_is_rejected_before_the_calibration(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intraslice_core.pipeline.read_calibration_text", None)
    coarse = CONFIG.model_copy(update={"round_to": 16, "target": "stock"})
    error = rejection(dense, errors.ConfigurationError, coarse)
    assert error.field == "compression.round_to"
    assert "with round_to 16, rounding leaves" in error.message
    assert error.hint is not None
    step = int(error.hint.split()[2])
    monkeypatch.undo()
    finer = coarse.model_copy(update={"round_to": step})
    report = compress_model(str(dense), dense.parent / "finer", finer, verify=False)
    assert report.plan.removed_fraction(report.geometry) == pytest.approx(0.3, abs=0.02)


def test_report_holds_the_selected_rounding_step(dense: Path) -> None:
    config = CONFIG.model_copy(update={"round_to": None})
    report = compress_model(str(dense), dense.parent / "out", config, verify=False)
    assert report.config.round_to == 2  # heads of 16 dimensions


def test_insufficient_disk_space_is_an_error(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000))
    rejection(dense, errors.InsufficientDiskError)


def test_an_existing_output_is_not_overwritten(dense: Path) -> None:
    out = dense.parent / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    rejection(dense, errors.OutputExistsError)
    assert (out / "precious").read_text() == "mine"


@pytest.mark.parametrize("stage", [Stage.CALIBRATE, Stage.COMPRESS, Stage.VERIFY])
def test_a_cancelled_run_leaves_no_files(dense: Path, stage: Stage) -> None:
    reached: list[Stage] = []
    before = contents(dense.parent)

    def listen(event: ProgressEvent) -> None:
        reached.append(event.stage)

    with pytest.raises(errors.CompressionCancelledError):
        compress_model(
            str(dense),
            dense.parent / "out",
            CONFIG,
            on_progress=listen,
            should_cancel=lambda: stage in reached,
        )
    assert contents(dense.parent) == before
    assert reached[-1] == stage


def test_progress_never_falls_and_ends_at_one(dense: Path) -> None:
    events: list[ProgressEvent] = []
    compress_model(str(dense), dense.parent / "out", CONFIG, on_progress=events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert events[-1].fraction == 1.0
    assert {event.layer for event in events if event.stage == Stage.COMPRESS} == {0, 1, 2}
    measuring = [
        event for event in events if event.message == "measuring the sensitivity of layers"
    ]
    assert {event.layer for event in measuring} == {0, 1, 2}
    assert {event.layers for event in measuring} == {3}


def test_report_and_card_travel_with_the_checkpoint(dense: Path) -> None:
    out = dense.parent / "out"
    report = compress_model(str(dense), out, CONFIG)
    stored = CompressionReport.model_validate_json((out / REPORT_FILE).read_text())
    assert stored == report
    card = (out / "README.md").read_text()
    assert report.model == dense.name
    for file in out.rglob("*"):
        if file.suffix in (".json", ".md", ".py"):
            assert str(dense.parent) not in file.read_text(), file.name
    assert f"{report.params_after:,}" in card
    assert "trust_remote_code=True" in card
    assert "tokens of `pydoc` (weight 1), `self` (weight 0.333)" in card


def test_a_model_larger_than_allowed_is_rejected_and_leaves_no_files(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "dense")
    limits = ModelLimits(max_parameters=1000)
    with pytest.raises(errors.ModelTooLargeError, match="1000 are allowed"):
        compress_model(str(model), tmp_path / "out", CompressionConfig(), limits=limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def measured(dense: Path, calibrated: Path, scored: Path) -> CompressionReport:
    """Compress with calibration on one file and evaluation on another; return the report."""
    calibration = CalibrationConfig(source=str(calibrated), samples=4, sequence_length=64)
    evaluation = EvaluationConfig(
        perplexity=(str(scored),), max_tokens=256, context_length=64, benchmark=False
    )
    config = CONFIG.model_copy(update={"calibration": calibration})
    out = dense.parent / "out"
    return compress_model(str(dense), out, config, evaluation=evaluation, verify=False)


@pytest.mark.parametrize("same", [True, False])
def test_evaluation_on_the_calibration_text_is_a_warning_in_report_and_card(
    dense: Path, same: bool
) -> None:
    first, other = dense.parent / "first.txt", dense.parent / "other.txt"
    first.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    other.write_text("Pack my box with five dozen liquor jugs! " * 40)
    report = measured(dense, first, first if same else other)
    assert report.evaluation is not None
    (text,) = report.evaluation.perplexity
    warning = "100.0% of the 13-token runs of first.txt were calibrated on: its score is optimistic"
    card = (dense.parent / "out" / "README.md").read_text()
    assert (text.calibration_overlap, warning in report.warnings, warning in card) == (
        (1.0, True, True) if same else (0.0, False, False)
    )


def test_an_unknown_task_is_rejected_before_compression(dense: Path) -> None:
    reached: list[Stage] = []
    before = contents(dense.parent)
    with pytest.raises(errors.TaskNotFoundError, match="no_such_task"):
        compress_model(
            str(dense),
            dense.parent / "out",
            CONFIG,
            evaluation=EvaluationConfig(tasks=("no_such_task",)),
            on_progress=lambda event: reached.append(event.stage),
        )
    assert set(reached) == {Stage.LOAD}
    assert contents(dense.parent) == before


def test_every_finished_layer_is_reported_with_its_sizes(dense: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    report = compress_model(
        str(dense), tmp_path / "out", CONFIG, verify=False, on_progress=events.append
    )
    finished = [event.finished for event in events if event.finished is not None]
    assert [layer.layer for layer in finished] == list(range(len(report.plan.layers)))
    for layer, plan in zip(finished, report.plan.layers, strict=True):
        assert layer.intermediate_size == plan.intermediate_size
        assert layer.mlp_part == plan.intermediate_size / report.geometry.intermediate_size
        assert layer.mlp_error == report.layers[layer.layer].mlp.relative_error
