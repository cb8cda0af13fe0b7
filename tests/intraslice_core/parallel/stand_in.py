"""A rank of `run_on_ranks` without the engine, which waits until it is cancelled.

It takes the place of `rank_main`, whose import takes seconds, to test what its parent does. The
first one answers the cancellation with the error of the engine; the other one ends after it. With
a report to send, they do not wait, and end badly.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from intraslice_core.errors import CompressionCancelledError
from intraslice_core.launcher import is_main_process
from intraslice_core.progress import ProgressEvent, Stage

ENDED = "TEST_ENDED"
"""Variable with the name of a file by which the first process tells of its end."""
REPORT = "TEST_REPORT"
"""Variable with the name of a file: the pickled report that the first process sends.

The first process hangs after it, and the other one kills itself.
"""


def _end_after_report(parent: Connection[Any, Any], report: Path, ended: Path) -> NoReturn:
    if is_main_process():
        parent.send_bytes(report.read_bytes())
        ended.touch()
    while is_main_process() or not ended.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def main() -> None:
    """Wait for the message that cancels the run, or for the end of the first process."""
    parent: Connection[Any, Any] = Connection(int(sys.argv[1]))
    ended = Path(os.environ[ENDED])
    parent.recv_bytes()  # the request, which would import the engine
    if REPORT in os.environ:
        _end_after_report(parent, Path(os.environ[REPORT]), ended)
    if is_main_process():
        with TemporaryDirectory(dir=ended.parent):  # as that of a checkpoint beside `out`
            parent.send(ProgressEvent(stage=Stage.COMPRESS, message="layer 1/4", fraction=0.5))
            assert pickle.loads(parent.recv_bytes()) == "cancel"
        ended.touch()
    while not ended.exists():
        time.sleep(0.01)
    parent.send(CompressionCancelledError("the compression was cancelled"))
    sys.exit(1)


if __name__ == "__main__":
    main()
