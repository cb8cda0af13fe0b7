"""One process of `rank_processes.run_on_ranks`: `python -m intraslice_core.rank_main FD PARENT`.

The request comes, and messages go, over the connection with the number FD.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from intraslice_core.errors import IntraSliceError, RankFailedError
from intraslice_core.launcher import is_main_process
from intraslice_core.parent_process import die_with
from intraslice_core.pipeline import compress_model
from intraslice_core.rank_processes import Message, RankRequest, Saved
from intraslice_core.reports.schema import CompressionReport


class _Parent:
    """Connection to the process that started this one."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._cancelled = False

    def request(self) -> RankRequest:
        """Return the request."""
        request: RankRequest = self._connection.recv()
        return request

    def send(self, message: Message) -> None:
        """Send a message; the heartbeat of the progress sends from a thread of its own."""
        with self._sending:
            self._connection.send(message)

    def is_cancelled(self) -> bool:
        """Report whether the parent has requested cancellation."""
        if not self._cancelled and self._connection.poll():
            self._connection.recv()
            self._cancelled = True
        return self._cancelled


def _compress(request: RankRequest, parent: _Parent) -> CompressionReport:
    """Run the engine with the arguments of the request."""
    state = request.resume_state
    if state is not None:
        state = replace(state, on_saved=lambda name: parent.send(Saved(name=name)))
    return compress_model(
        request.model,
        request.out,
        request.config,
        evaluation=request.evaluation,
        limits=request.limits,
        work_dir=request.work_dir,
        statistics_cache=request.statistics_cache,
        resume_state=state,
        offload_dir=request.offload_dir,
        speeds=request.speeds,
        verify=request.verify,
        uploads=request.uploads,
        on_progress=parent.send,
        should_cancel=parent.is_cancelled,
    )


def main() -> None:
    """Compress, and send the report or the error."""
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent cancels the run
    parent = _Parent(Connection(int(sys.argv[1])))
    try:
        report = _compress(parent.request(), parent)
        if is_main_process():
            parent.send(report)
        return
    except IntraSliceError as error:
        parent.send(error)
    except Exception as error:
        traceback.print_exc()
        parent.send(RankFailedError(f"{type(error).__name__}: {error}"))
    # Without the clean-up of connections to ranks that may be gone, which may never return.
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
