"""Runs on several devices end together and typed, and resume on any number of them.

One run passes from one process to two, of which one dies, and back to one, because starting a
process takes longer than everything that it does here.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from intraslice_core import rank_processes, residency
from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import memory
from intraslice_core.errors import (
    CompressionCancelledError,
    ConfigurationError,
    IntraSliceError,
    OutputExistsError,
    RankFailedError,
)
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.parallel import compressions, scripted_rank, stand_in
from tests.intraslice_core.parallel.comparison import assert_same_model
from tests.intraslice_core.reports import samples
from tests.intraslice_core.tiny_models import tiny_llama

NOTICED_SECONDS = 30.0
"""Time in which the others must end after the death of a process."""
METHOD = "intraslice_plus"
LAYERS = 3


@dataclass
class Part:
    """Events, saved files and outcome of one of the runs."""

    events: list[ProgressEvent] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    error: IntraSliceError | None = None
    report: CompressionReport | None = None
    ended: float = 0.0
    processes_left: int = 0


@dataclass
class Chain:
    """Runs of one compression after each other, of one, two and one process."""

    dense: Path
    folder: Path
    first: Part = field(default_factory=Part)
    killed: Part = field(default_factory=Part)
    last: Part = field(default_factory=Part)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def run(self, part: Part, devices: int, *, until: str = "") -> None:
        """Resume the compression, and cancel it once a file of its state is saved."""
        try:
            part.report = compress_model(
                str(self.dense),
                self.out,
                config_of(devices),
                resume_state=ResumeState(directory=self.state, on_saved=part.saved.append),
                verify=False,
                on_progress=part.events.append,
                should_cancel=lambda: until in part.saved,
            )
        except IntraSliceError as error:
            part.error = error
        part.ended = time.time()
        part.processes_left = len(list(ranks_of(psutil.Process())))


def config_of(devices: int) -> CompressionConfig:
    """Return settings with few and short sequences, of which two processes have three each."""
    config = compressions.config(METHOD)
    calibration = config.calibration.model_copy(update={"samples": 6, "sequence_length": 24})
    return config.model_copy(update={"devices": devices, "calibration": calibration})


def layer_file(layer: int) -> str:
    return f"layer-{layer:05}.safetensors"


def ranks_of(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield every rank that a process has started."""
    for child in process.children():
        with suppress(psutil.Error):  # it has just ended
            if "RANK" in child.environ():
                yield child


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = compressions.MODEL | {"num_hidden_layers": LAYERS}
    return tiny_llama(tmp_path_factory.mktemp("model") / "dense", **sizes)


@pytest.fixture(scope="module")
def chain(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    runs = Chain(dense=dense, folder=tmp_path_factory.mktemp("chain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
        patch.setattr(rank_processes, "PROGRAM", scripted_rank.__name__)
        runs.run(runs.first, 1, until=layer_file(0))
        patch.setenv(scripted_rank.DIES_AFTER, layer_file(1))
        runs.run(runs.killed, 2)
    assert not runs.out.exists()
    with pytest.MonkeyPatch.context() as patch:  # as if there were little memory
        patch.setattr(residency, "DEVICE_SHARE", 0.0)
        patch.setattr(memory, "IN_PLACE_WIDTH", 1)
        runs.run(runs.last, 1)
    return runs


def test_a_killed_process_is_named_and_ends_the_others_soon(chain: Chain) -> None:
    error = chain.killed.error
    assert isinstance(error, RankFailedError)
    assert "process 2 of 2 was killed" in error.message
    died = (chain.state / layer_file(1)).stat().st_mtime
    assert chain.killed.ended - died < NOTICED_SECONDS
    assert chain.killed.processes_left == 0


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ranks without the engine; the folder in which they work."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
    monkeypatch.setenv(stand_in.ENDED, str(tmp_path / "ended"))
    monkeypatch.setattr(rank_processes, "PROGRAM", stand_in.__name__)
    return tmp_path


def test_cancellation_reaches_the_processes_and_is_raised_as_their_error(stand_ins: Path) -> None:
    events: list[ProgressEvent] = []
    with pytest.raises(CompressionCancelledError):
        compress_model(
            str(stand_ins / "dense"),
            stand_ins / "out",
            config_of(2),
            on_progress=events.append,
            should_cancel=lambda: bool(events),
        )
    assert [event.stage for event in events] == [Stage.COMPRESS]
    assert not list(ranks_of(psutil.Process()))


def test_an_error_of_the_caller_leaves_no_temporary_files_and_no_processes(
    stand_ins: Path,
) -> None:
    def fail(event: ProgressEvent) -> None:
        raise OSError(f"cannot print {event.message!r}")

    with pytest.raises(OSError, match="cannot print 'layer 1/4'"):
        compress_model(str(stand_ins / "dense"), stand_ins / "out", config_of(2), on_progress=fail)
    assert [path.name for path in stand_ins.iterdir()] == ["ended"]
    assert not list(ranks_of(psutil.Process()))


def test_a_report_is_the_result_although_processes_die_or_hang_after_it(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_ins / "report").write_bytes(pickle.dumps(samples.report()))
    monkeypatch.setenv(stand_in.REPORT, str(stand_ins / "report"))
    monkeypatch.setattr(rank_processes, "_GRACE_SECONDS", 0.5)
    report = compress_model(str(stand_ins / "dense"), stand_ins / "out", config_of(2))
    assert report == samples.report()
    assert not list(ranks_of(psutil.Process()))


def test_processes_report_progress_and_saved_files(chain: Chain) -> None:
    events = chain.killed.events
    assert {Stage.LOAD, Stage.COMPRESS} <= {event.stage for event in events}
    finished = [event.layer for event in events if event.finished is not None]
    assert finished
    assert finished == [*range(len(finished))]
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert layer_file(1) in chain.killed.saved


def test_an_interrupted_run_resumes_with_any_number_of_processes(
    chain: Chain, dense: Path, tmp_path: Path
) -> None:
    layers = [
        [name for name in part.saved if name.startswith("layer-")]
        for part in (chain.first, chain.killed, chain.last)
    ]
    assert all(layers), layers
    solved = [name for part in layers for name in part]
    assert solved == [layer_file(layer) for layer in range(LAYERS)], "each is solved once"
    assert chain.last.error is None
    assert chain.last.report is not None
    assert chain.last.report.resumed_layers == LAYERS - 1
    compress_model(str(dense), tmp_path / "alone", config_of(1), verify=False)
    assert_same_model(chain.out, tmp_path / "alone")


def test_factorisations_in_place_keep_the_finished_layers(chain: Chain) -> None:
    messages = [event.message for event in chain.last.events]
    assert any("moments are factorised in place" in message for message in messages)
    assert not any("factorised in place" in event.message for event in chain.killed.events)
    assert chain.last.report is not None
    assert chain.last.report.resumed_layers == LAYERS - 1


@pytest.mark.parametrize(
    ("requested", "threads"), [("16", 4), ("3", 3), ("0", 4), ("4,2", 4), ("", 4), (None, 4)]
)
def test_processes_have_equal_shares_of_the_cores_at_most(
    requested: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if requested is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", requested)
    assert rank_processes._threads(4) == threads


@pytest.mark.parametrize("requested", ["1000", "all"])
def test_a_process_gets_its_number_of_threads(
    requested: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", requested)
    threads = []

    def is_started() -> bool:
        ranks = [*ranks_of(psutil.Process())]
        threads.extend(rank.environ()["OMP_NUM_THREADS"] for rank in ranks)
        return True

    with pytest.raises(CompressionCancelledError):
        compress_model(
            str(stand_ins / "dense"), stand_ins / "out", config_of(2), should_cancel=is_started
        )
    assert {*threads} == {str(rank_processes._threads(2))}


def test_an_output_that_exists_is_an_error_before_processes_start(
    dense: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExistsError):
        compress_model(str(dense), tmp_path / "out", config_of(2))


def test_more_gpus_than_there_are_is_an_error_before_processes_start(tmp_path: Path) -> None:
    config = CompressionConfig(device="cuda", devices=2)
    with pytest.raises(ConfigurationError) as caught:
        compress_model(str(tmp_path / "dense"), tmp_path / "out", config)
    assert caught.value.field in ("device", "devices")
