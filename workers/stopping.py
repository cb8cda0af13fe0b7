"""Stop signals of processes that wait, as an event, and their hand-over to Celery."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery, bootsteps  # type: ignore[import-untyped]


@contextmanager
def stopping_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; afterwards their handlers are as before."""
    stopping = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stopping.set()) for number in numbers]
    try:
        yield stopping
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def hand_over_to_celery(celery: Celery, stopping: threading.Event) -> None:
    """Let a worker of `celery` stop at once if `stopping` is set before it handles signals itself.

    Celery installs its handlers when a worker starts, and its steps start after that: every signal
    arrives at the one handler or the other.
    """

    class EarlySignal(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        def start(self, _worker: object) -> None:
            if stopping.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    celery.steps["worker"].add(EarlySignal)
