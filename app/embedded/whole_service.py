"""`intraslice up` as a child of ours: for the demo, for pictures, for tests of all of it."""

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

from app.embedded.errors import EmbeddedError
from app.embedded.process import Command, ManagedProcess

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.2


@contextmanager
def whole_service(data_dir: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Its URL, once it is ready; stopped at the end. Its words are in `up.log` beside `data_dir`.

    For the main thread, as all of `app.embedded`.

    Args:
        data_dir: where it keeps everything.
        options: more of `intraslice up`.
        port: 0: one that is free.

    Raises:
        EmbeddedError: if it does not start, with its last words.
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
        with _undisturbed():
            process.stop()


@contextmanager
def service_at(url: str | None) -> Iterator[str]:
    """The URL that is named or, without one, that of a whole service on a temporary directory."""
    if url is not None:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-service-") as place,
        whole_service(Path(place) / "data") as started,
    ):
        yield started


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half of it running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _url_of(process: ManagedProcess) -> str:
    """The address that it prints once it is ready."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.exit_code() is None:
        found = re.search(r"API\s+(http://\S+)/v1", process.log_tail(100))
        if found:
            return found[1]
        time.sleep(_POLL_SECONDS)
    raise EmbeddedError(f"the service did not start\n{process.log_tail(30)}")
