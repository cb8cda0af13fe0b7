"""A rank of `run_on_ranks` without the engine, which waits until it is cancelled.

It takes the place of `rank_main`, whose import takes seconds, to test what its parent does. The
first one answers the cancellation with the error of the engine; the other one ends after it.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from intraslice_core.errors import CompressionCancelledError
from intraslice_core.launcher import is_main_process
from intraslice_core.progress import ProgressEvent, Stage

ENDED = "TEST_ENDED"
"""Variable with the name of a file by which the first process tells of its end."""


def main() -> None:
    """Wait for the message that cancels the run, or for the end of the first process."""
    parent: Connection[Any, Any] = Connection(int(sys.argv[1]))
    ended = Path(os.environ[ENDED])
    parent.recv_bytes()  # the request, which would import the engine
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
