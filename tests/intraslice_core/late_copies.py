"""Copies that take place as late as the order of streams allows, on a machine without a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from intraslice_core import hidden_states, transfers
from intraslice_core.transfers import Transfers


class LateEvent:
    """End of a copy; the copy and those before it take place when something waits for it."""

    def __init__(self, queue: deque[LateEvent], copy: Callable[[], object]) -> None:
        self._queue = queue
        self._copy = copy
        self._is_done = False
        queue.append(self)

    def wait(self, stream: object) -> None:
        while not self._is_done:
            first = self._queue.popleft()
            first._copy()
            first._is_done = True


class LateTransfers(Transfers):
    """Transfers between two tensors of the CPU, of which nothing is copied before it must be."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._downloads = deque()
        self._queue: deque[LateEvent] = deque()
        self.copies = 0

    def wait(self) -> None:
        while self._queue:
            self._queue[-1].wait(None)
        self._downloads.clear()

    def _copy(self, target: Tensor, source: Tensor) -> LateEvent:  # type: ignore[override]
        self.copies += 1
        return LateEvent(self._queue, lambda: target.copy_(source))


def copy_late(monkeypatch: pytest.MonkeyPatch) -> list[LateTransfers]:
    """Let all passes copy their batches, late; return the transfers of the passes to come."""
    passes: list[LateTransfers] = []

    def late(tensors: Sequence[Tensor], device: torch.device) -> LateTransfers:
        passes.append(LateTransfers())
        return passes[-1]

    monkeypatch.setattr(transfers, "transfers_for", late)
    monkeypatch.setattr(hidden_states, "transfers_for", late)
    monkeypatch.setattr(transfers, "_computing_stream", lambda device: None)
    return passes
