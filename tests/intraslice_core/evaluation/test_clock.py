"""Durations on a CPU are those of the host's clock."""

from __future__ import annotations

import time

import torch

from intraslice_core.evaluation.clock import DeviceClock, seconds_between


def test_durations_on_a_cpu_are_seconds_of_the_host() -> None:
    clock = DeviceClock(torch.device("cpu"))
    clock.settle()
    before = time.perf_counter()
    start = clock.now()
    time.sleep(0.01)
    end = clock.now()
    after = time.perf_counter()
    assert 0.01 <= seconds_between(start, end) <= after - before
