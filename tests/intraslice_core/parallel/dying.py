"""A compression by two processes, the second of which kills itself in the middle of it.

`python dying.py DENSE FOLDER`, with the variables of a launch: the first process runs the store.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from intraslice_core.errors import IntraSliceError
from intraslice_core.launcher import is_main_process
from intraslice_core.pipeline import compress_model
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.parallel import compressions

LAST_LAYER = "layer-00001.safetensors"
"""File of the last layer that is finished before the second process dies."""
METHOD = "intraslice_plus"


def main() -> None:
    """Compress; the first process writes its error and how long it took to notice."""
    dense, folder = Path(sys.argv[1]), Path(sys.argv[2])
    state, dead = folder / "state", folder / "dead"

    def should_cancel() -> bool:
        if not is_main_process() and (state / LAST_LAYER).exists():
            dead.write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    try:
        compress_model(
            str(dense),
            folder / "out",
            compressions.config(METHOD),
            resume_state=ResumeState(directory=state),
            verify=False,
            should_cancel=should_cancel,
        )
    except IntraSliceError as error:
        seconds = time.time() - float(dead.read_text())
        facts = {"code": error.code, "message": error.message, "seconds": seconds}
        (folder / "error.json").write_text(json.dumps(facts))
        os._exit(3)


if __name__ == "__main__":
    main()
