"""Ctrl-C as a question the engine asks, not as an exception in the middle of its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from intraslice_core.progress import CancellationCheck


@contextmanager
def cancel_on_interrupt() -> Iterator[CancellationCheck]:
    """The first Ctrl-C asks the engine to stop and tidy up, the second interrupts at once."""
    asked = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signum, previous)
        asked.set()
        typer.echo("stopping; press Ctrl-C again to stop at once", err=True)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
