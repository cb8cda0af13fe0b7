"""Memory that the engine's processes hold, for progress events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

_SECONDS = 1.0
"""Time between two measurements: an event may follow every batch."""


class MemoryMeter:
    """Memory of this process and of those that it starts, measured at most once a second.

    A run on several devices is a process for each of them, and speed is measured in a clean one.

    Args:
        clock: current time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._measured: float | None = None
        self._fields: dict[str, int | None] = {}

    def fields(self) -> dict[str, int | None]:
        """Return the fields of a progress event: resident bytes, and bytes reserved on the GPU."""
        now = self._clock()
        if self._measured is None or now - self._measured >= _SECONDS:
            self._measured = now
            self._fields = {
                "memory_bytes": self._resident_bytes(),
                "gpu_memory_bytes": _reserved_bytes(),
            }
        return self._fields

    def _resident_bytes(self) -> int:
        """Return the resident memory of all processes; pages that several share count in each."""
        total = 0
        for process in (self._process, *self._descendants()):
            # One that has ended in the meantime holds nothing.
            with suppress(psutil.NoSuchProcess):
                total += int(process.memory_info().rss)
        return total

    def _descendants(self) -> list[psutil.Process]:
        """Return the processes that this one has started, and theirs.

        Empty where the system hides other processes (`hidepid=1`, `ProtectProc=noaccess`).
        """
        with suppress(psutil.Error, OSError):
            return list(self._process.children(recursive=True))
        return []


def _reserved_bytes() -> int | None:
    """Return what torch has reserved on this process's GPU; None unless it computes on one.

    That is None on several GPUs, on which the processes that it starts compute.

    torch is not imported for it, and may be only in part while another thread imports it.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    if cuda is None or is_initialized is None or not is_initialized():
        return None
    return int(cuda.memory_reserved())
