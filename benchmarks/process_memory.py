"""Seconds and private memory of a compression in this process, by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from intraslice_core.progress import ProgressEvent, Stage

_SAMPLING_SECONDS = 0.01


def resident() -> dict[str, int]:
    """Return the resident bytes of this process by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon", "RssFile", "RssShmem")
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds)
    }


@dataclass
class Watch:
    """Seconds, CPU seconds and peaks of memory by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    mapped: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    _since: float = field(default_factory=time.perf_counter)
    _cpu_since: float = field(default_factory=time.process_time)

    def listen(self, event: ProgressEvent) -> None:
        """Record the time of a progress event."""
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.cpu_seconds[self.stage] = self.cpu_seconds.get(self.stage, 0.0) + cpu - self._cpu_since
        self.stage, self._since, self._cpu_since = event.stage.value, now, cpu
        if event.stage is Stage.ALLOCATE:
            self.stage = f"allocate: {event.message}"

    def sample(self) -> None:
        """Record the current memory."""
        sizes = resident()
        own = sizes["RssAnon"] + sizes.get("RssShmem", 0)
        self.own[self.stage] = max(self.own.get(self.stage, 0), own)
        self.mapped[self.stage] = max(self.mapped.get(self.stage, 0), sizes["RssFile"])

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample memory while the block runs."""
        ended = threading.Event()

        def sample_until_ended() -> None:
            while not ended.wait(_SAMPLING_SECONDS):
                self.sample()

        thread = threading.Thread(target=sample_until_ended)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def total(self, spent: dict[str, float], stage: str) -> float:
        """Return the sum of `seconds` or `cpu_seconds` over the activities of a stage."""
        return sum(took for name, took in spent.items() if name.startswith(stage))
