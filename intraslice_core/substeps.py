"""Sub-steps of a run's progress, reported from functions that a step calls at some depth.

Reads and writes of large files, forward passes and child processes take long within one step. They
report what they have done here instead of passing a callback through every function in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("substeps", default=None)


def report_substep(message: str) -> None:
    """Report a part of the current step to the run that is in progress, if any.

    The run passes on at most one sub-step a second, so this may be called often.
    """
    substep_listener()(message)


def substep_listener() -> Callable[[str], None]:
    """Return the function that receives sub-steps here, for threads that this one starts."""
    return _LISTENER.get() or _ignore


def _ignore(message: str) -> None:
    """Ignore a sub-step: no run is in progress."""


@contextmanager
def substeps_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Send the sub-steps of a block to `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
