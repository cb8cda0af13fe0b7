"""`intraslice up` as a child process, for the demo, screenshots and benchmarks."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.embedded.process import Command, EmbeddedError, ManagedProcess

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.2


@contextmanager
def whole_service(data_dir: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Run the service and yield its URL once it is ready.

    The output of `intraslice up` goes to `up.log` beside `data_dir`. Call this from the main
    thread, like everything in `app.embedded`.

    Args:
        data_dir: data directory of the service.
        options: more options of `intraslice up`.
        port: port of the API; 0 selects a free one.

    Raises:
        EmbeddedError: if the service does not start; contains the end of its output.
    """
    process = ManagedProcess(
        Command(
            name="intraslice up",
            arguments=[
                *(sys.executable, "-m", "app.cli.main", "up"),
                *("--data-dir", str(data_dir), "--port", str(port), *options),
            ],
            log=data_dir.with_name("up.log"),
            cwd=Path(__file__).parents[2],
            stop_seconds=_STOP_SECONDS,
            environment={**os.environ, "COLUMNS": "200"},
        )
    )
    try:
        yield _url_of(process)
    finally:
        with _interrupts_ignored():
            process.stop()


@contextmanager
def service_at(url: str | None) -> Iterator[str]:
    """Yield `url` or, if it is None, the URL of a service that runs on a temporary directory."""
    if url is not None:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-service-") as directory,
        whole_service(Path(directory) / "data") as started,
    ):
        yield started


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, so that a second one does not leave some of the processes running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _url_of(process: ManagedProcess) -> str:
    """Return the URL that `intraslice up` prints once the service is ready."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.exit_code() is None:
        match = re.search(r"API\s+(http://\S+)/v1", process.log_tail(100))
        if match:
            return match[1]
        time.sleep(_POLL_SECONDS)
    raise EmbeddedError(f"the service did not start\n{process.log_tail(30)}")
