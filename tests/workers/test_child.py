"""The child process: every outcome becomes one message."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from structlog.testing import capture_logs

from intraslice_core import pipeline
from intraslice_core.config import CalibrationConfig, CompressionConfig, EvaluationConfig
from intraslice_core.errors import NumericalError, OutOfDeviceMemoryError
from intraslice_core.host_limit import runs_at_once
from intraslice_core.progress import ProgressEvent, Stage
from tests.intraslice_core.tiny_models import tiny_llama
from workers.child import Child
from workers.memory_use import MemoryMeter
from workers.messages import (
    ChildRequest,
    FailedMessage,
    FinishedMessage,
    LayerSavedMessage,
    ProgressMessage,
    ResumeStateSettings,
    decode,
)

_HELD_BYTES = 128 * 2**20


def request(tmp_path: Path, model: str = "/no/such/model") -> ChildRequest:
    return ChildRequest(
        model=model,
        checkpoint=tmp_path / "checkpoint",
        scratch=tmp_path,
        compression=CompressionConfig(),
        evaluation=None,
    )


def last_message(out: io.BytesIO) -> FailedMessage:
    message = decode(out.getvalue().splitlines()[-1])
    assert isinstance(message, FailedMessage)
    return message


def test_engine_errors_keep_their_code_and_field(tmp_path: Path) -> None:
    out = io.BytesIO()
    Child(out).run(request(tmp_path))
    message = last_message(out)
    assert (message.code, message.field, message.stage) == ("model_not_found", "model", "load")


def test_a_task_without_the_extra_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    out = io.BytesIO()
    evaluation = EvaluationConfig(tasks=("arc_easy",))
    base = request(tmp_path, str(tiny_llama(tmp_path / "dense")))
    Child(out).run(base.model_copy(update={"evaluation": evaluation}))
    message = last_message(out)
    assert (message.code, message.field) == ("missing_extra", "evaluation.tasks")
    assert message.hint == 'pip install "intraslice[eval]"'


def test_jobs_that_run_at_once_count_on_equal_parts_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def compress(*_arguments: object, **_options: object) -> None:
        counted.append(runs_at_once())
        raise NumericalError("enough was seen")

    monkeypatch.setattr(pipeline, "compress_model", compress)
    Child(io.BytesIO()).run(request(tmp_path).model_copy(update={"jobs_at_once": 2}))
    assert counted == [2]


def test_a_stop_before_the_start_is_a_cancellation(tmp_path: Path) -> None:
    out = io.BytesIO()
    child = Child(out)
    child.request_stop(signal.SIGTERM, None)
    child.run(request(tmp_path))
    assert last_message(out).code == "cancelled"


def test_new_steps_and_finished_layers_are_logged() -> None:
    def event(message: str, **more: object) -> ProgressEvent:
        values = {"stage": Stage.COMPRESS, "message": message, "fraction": 0.5, "layers": 2}
        return ProgressEvent.model_validate(values | more)

    done = {
        "layer": 0,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "qk_head_dim": 8,
        "v_head_dim": 8,
        "intermediate_size": 12,
        "attention_part": 1.0,
        "mlp_part": 0.5,
    }
    child = Child(io.BytesIO())
    with capture_logs() as entries:
        for message in ("layer 1/2", "layer 1/2: refit", "layer 1/2"):
            child._on_progress(event(message, layer=0))
        child._on_progress(event("layer 1/2 is done", layer=0, finished=done))
        child._on_progress(event("layer 2/2", layer=1))
        child._on_progress(event("ready", stage=Stage.VERIFY))
    logged = [(entry["event"], entry["stage"], entry.get("message")) for entry in entries]
    assert logged == [
        ("step", "compress", "layer 1/2"),
        ("layer_finished", "compress", None),
        ("step", "verify", "ready"),
    ]
    assert (entries[1]["layers"], entries[1]["mlp_part"]) == (2, 0.5)
    assert "mlp_error" not in entries[1]


def test_progress_names_the_memory_of_the_process() -> None:
    out = io.BytesIO()
    child = Child(out)
    child._on_progress(ProgressEvent(stage=Stage.LOAD, message="reading", fraction=0.0))
    message = decode(out.getvalue())
    assert isinstance(message, ProgressMessage)
    resident = message.event.memory_bytes
    assert resident is not None
    assert resident > 0.95 * psutil.Process().memory_info().rss
    assert message.event.gpu_memory_bytes is None


def test_memory_is_measured_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = iter((5_000, 7_000))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: next(reserved))
    moments = iter((0.0, 0.9, 1.1))
    meter = MemoryMeter(lambda: next(moments))
    assert [meter.fields()["gpu_memory_bytes"] for _ in range(3)] == [5_000, 5_000, 7_000]


def test_memory_includes_that_of_processes_of_processes() -> None:
    moments = iter((0.0, 2.0))
    meter = MemoryMeter(lambda: next(moments))
    alone = meter.fields()["memory_bytes"]
    program = f"held = b'x' * {_HELD_BYTES}; print(flush=True); input()"
    command = ["sh", "-c", '"$0" -c "$1"; exit', sys.executable, program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"\n"
        together = meter.fields()["memory_bytes"]
    assert alone is not None
    assert together is not None
    assert _HELD_BYTES < together - alone < 2 * _HELD_BYTES


def test_a_process_that_has_just_ended_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as run:
        ended = psutil.Process(run.pid)
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [ended])
    resident = MemoryMeter().fields()["memory_bytes"]
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), PermissionError(13, "/proc")])
def test_where_the_system_hides_processes_the_memory_is_that_of_this_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def hidden(process: psutil.Process, recursive: bool) -> list[psutil.Process]:
        raise error

    monkeypatch.setattr(psutil.Process, "children", hidden)
    resident = MemoryMeter().fields()["memory_bytes"]
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


@pytest.mark.parametrize(
    ("error", "code", "layer"),
    [
        (NumericalError("singular", layer=3, module="mlp"), "numerical", 3),
        (MemoryError(), "out_of_memory", None),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", None),
        (OutOfDeviceMemoryError("too little"), "out_of_device_memory", None),
        (ValueError("a bug"), "internal_error", None),
    ],
)
@pytest.mark.usefixtures("capsys")
def test_any_exception_becomes_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
    layer: int | None,
) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "compress_model", broken)
    out = io.BytesIO()
    Child(out).run(request(tmp_path))
    message = last_message(out)
    assert (message.code, message.layer) == (code, layer)


def test_a_child_of_another_parent_exits() -> None:
    command = [sys.executable, "-P", "-m", "workers.child", "1"]
    done = subprocess.run(command, input=b"{}", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_job_on_several_devices_reports_progress_and_ends_as_on_one(tmp_path: Path) -> None:
    out = io.BytesIO()
    calibration = CalibrationConfig(source="pydoc", samples=8, sequence_length=32)
    compression = CompressionConfig(
        ratio=0.3, round_to=2, method="flap", device="cpu", devices=2, calibration=calibration
    )
    base = request(tmp_path, str(tiny_llama(tmp_path / "dense")))
    state = ResumeStateSettings(directory=tmp_path / "state", hidden_states_every_seconds=60.0)
    changes = {"compression": compression, "resume_state": state}
    Child(out).run(base.model_copy(update=changes))
    messages = [decode(line) for line in out.getvalue().splitlines()]
    assert isinstance(messages[-1], FinishedMessage)
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    stages = {message.event.stage for message in messages if isinstance(message, ProgressMessage)}
    assert {Stage.CALIBRATE, Stage.COMPRESS, Stage.VERIFY} <= stages
    saved = [message.name for message in messages if isinstance(message, LayerSavedMessage)]
    assert "layer-00000.safetensors" in saved
