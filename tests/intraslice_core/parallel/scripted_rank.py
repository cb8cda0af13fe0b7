"""A rank of `run_on_ranks` that dies after a layer, in place of `rank_main`.

`DIES_AFTER` names a file of the resume state after which every rank but the first kills itself.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intraslice_core import rank_main
from intraslice_core.launcher import is_main_process
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState

DIES_AFTER = "TEST_DIES_AFTER"


def _check(directory: Path, should_cancel: Callable[[], bool]) -> bool:
    """Die if it is time; report whether the run is cancelled."""
    if not is_main_process() and (directory / os.environ[DIES_AFTER]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return should_cancel()


def _compress(
    *arguments: Any, resume_state: ResumeState, should_cancel: Callable[[], bool], **options: Any
) -> CompressionReport:
    """Run the engine with the check between its batches."""
    check = functools.partial(_check, resume_state.directory, should_cancel)
    return compress_model(*arguments, resume_state=resume_state, should_cancel=check, **options)


if __name__ == "__main__":
    rank_main.compress_model = _compress  # type: ignore[assignment]
    rank_main.main()
