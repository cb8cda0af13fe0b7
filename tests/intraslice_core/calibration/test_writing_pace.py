"""Remaining time of written text: later tokens of a sequence take longer than earlier ones."""

from __future__ import annotations

import pytest

from intraslice_core.calibration.writing_pace import WritingPace, WritingProgress


class Clock:
    """Time in seconds that a test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def seconds_of(position: int, rows: int) -> float:
    """Return the duration of a step: a fixed part, and one by the number of cached tokens."""
    return 0.05 + 2e-5 * rows * position


@pytest.mark.parametrize("rows", [1, 32])
def test_the_remaining_time_is_that_of_the_remaining_steps(rows: int) -> None:
    """After 100 of 2 x 1,000 steps: without the slope it would be estimated at a half."""
    reports: list[WritingProgress] = []
    clock = Clock()
    batches = [[1000] * rows, [1000] * rows]
    pace = WritingPace([1000] * (2 * rows), reports.append, clock)
    pace.plan(batches)
    for position in range(4, 100):
        clock.now += seconds_of(position, rows)
        pace.step(position, rows, 5 if position == 4 else 1)
    last = reports[-1]
    assert last.total == 2000 * rows
    position = last.tokens // rows
    left = sum(seconds_of(place, rows) for place in range(position, 1000))
    left += sum(seconds_of(place, rows) for place in range(1000))
    assert last.seconds_left == pytest.approx(left, rel=1e-6)


def test_the_remaining_time_is_unknown_at_first() -> None:
    reports: list[WritingProgress] = []
    clock = Clock()
    pace = WritingPace([100], reports.append, clock)
    pace.plan([[100]])
    for position in range(1, 20):
        clock.now += 1.0
        pace.step(position, 1, 1)
    assert [report.seconds_left for report in reports] == [None] * 19
    assert [report.tokens for report in reports] == list(range(2, 21))


def test_a_batch_that_is_repeated_in_parts_is_counted_again() -> None:
    reports: list[WritingProgress] = []
    clock = Clock()
    pace = WritingPace([10] * 4, reports.append, clock)
    for batches in ([[10] * 4], [[10] * 2, [10] * 2], [[10] * 2]):
        pace.plan(batches)
        clock.now += 1.0
        pace.step(1, len(batches[0]), 2)
    assert [report.tokens for report in reports] == [8, 4, 20 + 4]
