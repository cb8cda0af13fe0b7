"""Durations of work on a device, by the device's own clock."""

from __future__ import annotations

import time

import torch

Instant = float | torch.cuda.Event
"""Seconds on a CPU; on a GPU an event in the stream of its work."""


class DeviceClock:
    """Clock of a device.

    On a GPU an instant is an event among the queued work. The host goes on queueing instead of
    waiting, so that timing the parts of a model does not slow the whole.

    Args:
        device: device of the timed work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        """Wait until all queued work is done, so that none of it is part of what is timed next."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def now(self) -> Instant:
        """Return the instant at which all work that was queued so far is done."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def seconds_between(start: Instant, end: Instant) -> float:
    """Return the seconds between two instants of one clock; on a GPU the host waits for the end."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000.0
