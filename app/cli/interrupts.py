"""Ctrl-C as a flag that the engine polls, instead of an exception in the middle of its work."""

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
    """Yield a cancellation check that the first Ctrl-C sets; the second one interrupts at once."""
    requested = threading.Event()

    def request(signum: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signum, previous)
        requested.set()
        typer.echo("stopping; press Ctrl-C again to stop immediately", err=True)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
