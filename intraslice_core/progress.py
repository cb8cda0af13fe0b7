"""Typed progress of a run, and the question "shall I stop?"."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from intraslice_core.config import FrozenModel
from intraslice_core.errors import CompressionCancelledError


class Stage(StrEnum):
    """What a job is doing, in order."""

    LOAD = "load"
    CALIBRATE = "calibrate"
    ALLOCATE = "allocate"
    COMPRESS = "compress"
    RECOVER = "recover"
    VERIFY = "verify"
    EVALUATE = "evaluate"
    EXPORT = "export"
    PUBLISH = "publish"


class ProgressEvent(FrozenModel):
    """One step forward. `fraction` is of the whole run, in [0, 1]; `layer` counts from 0."""

    stage: Stage
    message: str
    fraction: float
    layer: int | None = None
    layers: int | None = None
    eta_seconds: float | None = None


ProgressListener = Callable[[ProgressEvent], None]
CancellationCheck = Callable[[], bool]


def ignore_progress(event: ProgressEvent) -> None:
    """Listen to nothing."""


def never_cancelled() -> bool:
    """Run to the end."""
    return False


def raise_if_cancelled(should_cancel: CancellationCheck) -> None:
    """Stop here when asked.

    Raises:
        CompressionCancelledError: if `should_cancel` says so.
    """
    if should_cancel():
        raise CompressionCancelledError("the compression was cancelled")
