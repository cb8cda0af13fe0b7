"""A compression on several devices of this machine: starts the processes and watches them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from intraslice_core.config import (
    UNLIMITED,
    CompressionConfig,
    EvaluationConfig,
    ModelLimits,
)
from intraslice_core.device import resolve_device
from intraslice_core.errors import ConfigurationError, IntraSliceError, RankFailedError
from intraslice_core.files import require_free_output
from intraslice_core.launcher import Launch
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    ignore_progress,
    never_cancelled,
)
from intraslice_core.rank_watch import name_of, post_failure, run_prefix
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState, SavedListener, ignore_saved
from intraslice_core.stage_speeds import StageSpeeds
from intraslice_core.statistics_cache import StatisticsCache

PROGRAM = "intraslice_core.rank_main"
CANCEL = "cancel"
"""Message to the main rank that ends the run."""
_ADDRESS = "127.0.0.1"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30.0
"""Time in which the other ranks end after a failure or the report, before they are killed."""
_CANCELLATION_SECONDS = 10.0
"""Time in which the ranks remove their temporary files, before they are killed."""
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """Arguments of `compress_model` that a rank needs; only the main rank uses all of them."""

    model: str
    out: Path
    config: CompressionConfig
    evaluation: EvaluationConfig | None = None
    limits: ModelLimits = UNLIMITED
    work_dir: Path | None = None
    statistics_cache: StatisticsCache | None = None
    resume_state: ResumeState | None = None
    offload_dir: Path | None = None
    speeds: StageSpeeds | None = None
    verify: bool = True
    uploads: bool = False


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Message of the main rank: a file of the resume state is complete."""

    name: str


Message = ProgressEvent | Saved | CompressionReport | IntraSliceError
"""Message of a rank; the last one is the report of the main rank or the error of any."""


def run_on_ranks(
    request: RankRequest,
    *,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Compress a model on the requested number of devices, by a process for each of them.

    On GPUs these are the first of those that are visible. Processes on a CPU share its cores.

    Args:
        request: arguments of the compression; `config.devices` is the number of processes.
        on_progress: called with every step of the main rank.
        should_cancel: called several times a second; returning True stops the run.

    Raises:
        ConfigurationError: if there are fewer GPUs than requested.
        RankFailedError: if a process ends without an error of its own; another attempt may succeed,
            and resumes from `request.resume_state`.
        IntraSliceError: the error of the rank that failed first.
    """
    require_free_output(request.out)
    count = request.config.devices
    device = resolve_device(request.config.device)
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ConfigurationError(
            f"{count} GPUs were requested, but {torch.cuda.device_count()} are visible",
            field="devices",
            hint="request fewer",
        )
    on_saved: SavedListener = ignore_saved
    if request.resume_state is not None:
        on_saved = request.resume_state.on_saved
        silent = replace(request.resume_state, on_saved=ignore_saved)  # what can be sent
        request = replace(request, resume_state=silent)
    processes = _Processes(count, request)
    try:
        return processes.report(on_progress, on_saved, should_cancel)
    finally:
        processes.kill()


def _threads(count: int) -> int:
    """Return the number of threads of each process: an equal share, or fewer by the environment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max((cores or 1) // count, 1)
    requested = os.environ.get(_THREADS, "").strip()
    return min(int(requested), share) if requested.isdecimal() and int(requested) else share


@dataclass(frozen=True)
class _Process:
    """One rank and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]

    def message(self) -> Message | None:
        """Return the next message; None if there is none."""
        try:
            message: Message | None = self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return None
        return message


class _Processes:
    """The processes of a run, from their start to their end."""

    def __init__(self, count: int, request: RankRequest) -> None:
        self._store = TCPStore(
            _ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=10)
        )
        self._ranks: list[_Process] = []
        self._errors: dict[int, IntraSliceError] = {}
        self._death: RankFailedError | None = None
        self._report: CompressionReport | None = None
        try:
            for rank in range(count):
                self._ranks.append(self._start(rank, count, request))
        except BaseException:
            self.kill()
            raise

    def _start(self, rank: int, count: int, request: RankRequest) -> _Process:
        ours, theirs = Pipe()
        launch = Launch(
            rank=rank, count=count, local_rank=rank, address=_ADDRESS, port=self._store.port
        )
        environment = {**os.environ, _THREADS: str(_threads(count)), **launch.environment()}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno()), str(os.getpid())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.send(request)
        return _Process(process, ours)

    def report(
        self,
        on_progress: ProgressListener,
        on_saved: SavedListener,
        should_cancel: CancellationCheck,
    ) -> CompressionReport:
        """Relay messages until all processes have ended; return the report of the main rank.

        The main rank sends it once the result is published, which no process changes later.

        Raises:
            IntraSliceError: the first error of a rank.
        """
        try:
            self._relay_until_end(on_progress, on_saved, should_cancel)
        except BaseException:  # of a listener, or the user's interrupt
            self._stop()
            raise
        if self._report is None:
            raise self._error()
        return self._report

    def _relay_until_end(
        self,
        on_progress: ProgressListener,
        on_saved: SavedListener,
        should_cancel: CancellationCheck,
    ) -> None:
        """Relay messages until all processes have ended, or long after a failure or the report."""
        deadline: float | None = None
        cancelled = False
        while any(rank.process.poll() is None for rank in self._ranks):
            self._relay(on_progress, on_saved)
            if deadline is None and self._is_decided:
                deadline = time.monotonic() + _GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                break
            if not cancelled and should_cancel():
                cancelled = True
                self._cancel()
            time.sleep(_POLL_SECONDS)
        self._relay(on_progress, on_saved)

    @property
    def _is_decided(self) -> bool:
        """Report whether the result or a failure of the run is known."""
        return bool(self._errors) or self._death is not None or self._report is not None

    def _stop(self) -> None:
        """Cancel the run and wait a while, so that the processes remove their temporary files.

        Their messages are read, because a process waits where its pipe is full.
        """
        self._cancel()
        deadline = time.monotonic() + _CANCELLATION_SECONDS
        while any(rank.process.poll() is None for rank in self._ranks):
            self._relay(ignore_progress, ignore_saved)
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_SECONDS)

    def _relay(self, on_progress: ProgressListener, on_saved: SavedListener) -> None:
        """Handle the messages of all ranks, and notice a process that ended without an error."""
        for number, rank in enumerate(self._ranks):
            code = rank.process.poll()  # before its last messages are read
            while (message := rank.message()) is not None:
                if isinstance(message, IntraSliceError):
                    self._errors[number] = message
                elif isinstance(message, CompressionReport):
                    self._report = message
                elif isinstance(message, Saved):
                    on_saved(message.name)
                else:
                    on_progress(message)
            if code and number not in self._errors and self._death is None:
                self._report_death(number, code)

    def _report_death(self, number: int, code: int) -> None:
        """Record that a process ended without an error of its own, and tell the other ranks."""
        name = name_of(number, len(self._ranks))
        self._death = RankFailedError(
            f"{name} {_end_of(code)}",
            hint="run it again: with a resume directory it continues after the last finished layer",
        )
        run = PrefixStore(run_prefix(Launch.attempt, 0), self._store)
        post_failure(run, self._death, name)

    def _cancel(self) -> None:
        with suppress(OSError):  # the process has just ended
            self._ranks[0].connection.send(CANCEL)

    def _error(self) -> IntraSliceError:
        """Return the error that says most about the end of the run."""
        errors = [*self._errors.values()]
        causes = [error for error in errors if not isinstance(error, RankFailedError)]
        if causes:
            return causes[0]
        unknown = RankFailedError("the processes ended without a result")
        return self._death or next(iter(errors), unknown)

    def kill(self) -> None:
        """End all processes and close the connections."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.kill()
            rank.process.wait()
            rank.connection.close()


def _end_of(code: int) -> str:
    """Return how a process ended, by its exit code."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), often for lack of memory"
    if code < 0:
        return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
