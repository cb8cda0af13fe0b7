"""A rank of `run_on_ranks` that dies or waits after a layer, in place of `rank_main`.

`DIES_AFTER` names a file of the resume state after which every rank but the first kills itself,
`WAITS_AFTER` one after which the first waits until it is cancelled.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intraslice_core import rank_main
from intraslice_core.launcher import is_main_process
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState

DIES_AFTER, WAITS_AFTER = "TEST_DIES_AFTER", "TEST_WAITS_AFTER"


def _check(directory: Path, should_cancel: Callable[[], bool]) -> bool:
    """Die or wait if it is time; report whether the run is cancelled."""
    last, pause = os.environ.get(DIES_AFTER), os.environ.get(WAITS_AFTER)
    if last is not None and not is_main_process() and (directory / last).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if pause is not None and is_main_process() and (directory / pause).exists():
        while not should_cancel():
            time.sleep(0.01)
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
