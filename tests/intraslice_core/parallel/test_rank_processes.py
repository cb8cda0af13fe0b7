"""Runs of several processes end together and typed, and resume with any number of processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import (
    CompressionCancelledError,
    NumericalError,
    OutputExistsError,
    RankFailedError,
)
from intraslice_core.launcher import Launch
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.rank_processes import RankRequest, run_on_ranks
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.parallel import compressions, dying
from tests.intraslice_core.tiny_models import (
    save_checkpoint,
    tiny_family_model,
    tiny_llama,
    tiny_tokenizer,
)

NOTICED_SECONDS = 30.0
"""Time in which the others must end after the death of a process."""
METHOD = dying.METHOD


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "dense", **compressions.MODEL)


@pytest.fixture(scope="module")
def interrupted(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run of two processes, one of which was killed after two layers."""
    folder = tmp_path_factory.mktemp("interrupted")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", dying.__name__, str(dense), str(folder)],
            env={
                **os.environ,
                **Launch(
                    rank=rank,
                    count=2,
                    local_rank=rank,
                    address="127.0.0.1",
                    port=port,
                    hosted=False,
                ).environment(),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [3, -signal.SIGKILL]
    return folder


def request(dense: Path, folder: Path, **changes: object) -> RankRequest:
    values = {
        "model": str(dense),
        "out": folder / "out",
        "config": compressions.config(METHOD),
        "verify": False,
    }
    return RankRequest(**(values | changes))  # type: ignore[arg-type]


def ranks_of(process: psutil.Process) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the number and the process of every rank that a process has started."""
    for child in process.children():
        with suppress(psutil.Error):  # it has just ended
            number = child.environ().get("RANK")
            if number is not None:
                yield int(number), child


def test_a_killed_process_ends_the_other_soon_with_a_typed_error(interrupted: Path) -> None:
    error = json.loads((interrupted / "error.json").read_text())
    assert error["code"] == RankFailedError.code
    assert error["seconds"] < NOTICED_SECONDS
    assert not (interrupted / "out").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupted_run_resumes_with_any_number_of_processes(
    count: int, interrupted: Path, dense: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted / "state", tmp_path / "state")
    files = {file.name: file.read_bytes() for file in (tmp_path / "state").iterdir()}
    resumed = run_on_ranks(count, request(dense, tmp_path, resume_dir=tmp_path / "state"))
    assert resumed.resumed_layers >= 2
    assert (tmp_path / "state" / dying.LAST_LAYER).read_bytes() == files[dying.LAST_LAYER]
    alone = compress_model(
        str(dense), tmp_path / "alone", compressions.config(METHOD), verify=False
    )
    assert resumed.plan == alone.plan
    expected = load_file(tmp_path / "alone" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        scale = float(expected[name].abs().max()) if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(tensor, expected[name], rtol=0.0, atol=1e-3 * scale)


def test_a_run_that_starts_its_processes_reports_progress_and_saved_files(
    dense: Path, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    saved: list[str] = []
    report = run_on_ranks(
        2,
        request(dense, tmp_path, resume_dir=tmp_path / "state"),
        on_progress=events.append,
        on_saved=saved.append,
    )
    assert isinstance(report, CompressionReport)
    assert (tmp_path / "out" / "model.safetensors").exists()
    finished = [event.layer for event in events if event.finished is not None]
    assert finished == list(range(compressions.MODEL["num_hidden_layers"]))
    assert {Stage.CALIBRATE, Stage.ALLOCATE, Stage.COMPRESS} <= {event.stage for event in events}
    assert [event.fraction for event in events] == sorted(event.fraction for event in events)
    assert dying.LAST_LAYER in saved


def test_a_killed_process_of_a_run_that_starts_its_processes_is_named(
    dense: Path, tmp_path: Path
) -> None:
    def kill_the_second(event: ProgressEvent) -> None:
        if event.stage is Stage.ALLOCATE:
            for number, process in ranks_of(psutil.Process()):
                if number == 1:
                    process.kill()

    with pytest.raises(RankFailedError, match="process 2 of 2 was killed"):
        run_on_ranks(2, request(dense, tmp_path), on_progress=kill_the_second)
    assert list(ranks_of(psutil.Process())) == []
    assert not (tmp_path / "out").exists()


def test_cancellation_reaches_all_processes(dense: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    with pytest.raises(CompressionCancelledError):
        run_on_ranks(
            2,
            request(dense, tmp_path),
            on_progress=events.append,
            should_cancel=lambda: any(event.stage is Stage.ALLOCATE for event in events),
        )
    assert list(ranks_of(psutil.Process())) == []
    assert not (tmp_path / "out").exists()


def test_an_error_before_the_work_is_that_of_one_process(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExistsError):
        run_on_ranks(2, request(dense, tmp_path))


def test_a_non_finite_activation_of_one_process_ends_both_with_its_layer(tmp_path: Path) -> None:
    """One sequence has a token whose embedding overflows, so that one rank alone meets it."""
    samples, length = 8, 48
    text = "".join(chr(97 + (index * index + index // 7) % 26) for index in range(samples * length))
    (tmp_path / "text.txt").write_text("~" + text[1:])
    model = tiny_family_model("gpt_neox")
    (token,) = tiny_tokenizer()("~")["input_ids"]
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[token, ::2], rows[token, 1::2] = 3e38, -3e38
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(
        ratio=0.3,
        round_to=2,
        dtype="float32",
        calibration=CalibrationConfig(
            source=str(tmp_path / "text.txt"),
            samples=samples,
            sequence_length=length,
            self_share=0.0,
        ),
    )
    with pytest.raises(NumericalError) as caught:
        run_on_ranks(2, request(dense, tmp_path, config=config))
    assert caught.value.layer is not None


def test_the_resume_state_of_one_process_serves_several(dense: Path, tmp_path: Path) -> None:
    state = ResumeState(directory=tmp_path / "state")
    config = compressions.config("flap")
    compress_model(str(dense), tmp_path / "1", config, resume_state=state, verify=False)
    (tmp_path / "state" / "layer-00004.safetensors").unlink()
    resumed = run_on_ranks(
        2, request(dense, tmp_path, config=config, resume_dir=tmp_path / "state")
    )
    assert resumed.resumed_layers == 4
