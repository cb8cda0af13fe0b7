"""Ranks that are copies of one process, which imports the engine once for all of them.

The process must not have computed anything: threads of torch do not survive a fork.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from intraslice_core.launcher import Launch


@dataclass(frozen=True)
class _Finish:
    """Pipes by which the ranks end together, since the first of them runs their store."""

    finished: tuple[int, int]
    ended: tuple[int, int]

    def wait(self) -> None:
        """Wait in a rank until all others have finished, too, or failed."""
        os.close(self.ended[1])
        os.close(self.finished[1])
        os.read(self.ended[0], 1)

    def wait_for_ranks(self) -> None:
        """Wait in the process that started them until all ranks have finished or failed."""
        os.close(self.finished[1])
        os.read(self.finished[0], 1)
        for end in (self.finished[0], *self.ended):
            os.close(end)


def run_in_ranks(count: int, work: Callable[[], None]) -> None:
    """Run work in a number of connected ranks, which are started from this process.

    Raises:
        SystemExit: if a rank fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gc.freeze()  # a collection would copy the memory that the ranks have in common
    finish = _Finish(os.pipe(), os.pipe())
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _run(rank, count, port, work, finish)
        children.append(child)
    finish.wait_for_ranks()
    ends = [os.waitpid(child, 0)[1] for child in children]
    if any(ends):
        sys.exit(f"ranks ended with {ends}")


def _run(rank: int, count: int, port: int, work: Callable[[], None], finish: _Finish) -> NoReturn:
    """Run work as one of the ranks, and end this process."""
    launch = Launch(
        rank=rank, count=count, local_rank=0, address="127.0.0.1", port=port, hosted=False
    )
    os.environ.update(launch.environment())
    code = 1
    try:
        work()
        finish.wait()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
