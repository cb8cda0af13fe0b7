"""The most memory that a piece of work takes beyond what was taken before it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]
import torch

from intraslice_core.host_memory import return_free_memory

_EVERY_SECONDS = 0.001


class PeakMemory:
    """Watches the block below a `with`.

    On a GPU the allocator keeps count. On the CPU a thread reads the process's resident memory
    every millisecond: counts that the kernel keeps cannot be set back without losing the peak that
    the whole run reports.

    Args:
        device: where the work is done.
    """

    growth: int
    """Bytes, once the block has ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._before = self._most = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        # Pages that earlier work has left behind would be taken again without being seen.
        return_free_memory()
        self._before = self._most = self._process.memory_info().rss
        self._watch.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self._most = torch.cuda.max_memory_allocated(self._device)
        else:
            self._ended.set()
            self._watch.join()
            self._look()
        self.growth = self._most - self._before

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss)
