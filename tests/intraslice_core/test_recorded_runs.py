"""The remaining time, on recorded runs of SmolLM2-135M.

`benchmarks/progress.py --record` makes a recording. These two were made with one thread of an AMD
EPYC at commit c797d26, with and without an evaluation.
"""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import pytest

from benchmarks.progress import AFTER, RecordedRun
from intraslice_core.progress import Stage
from intraslice_core.stage_speeds import expected_seconds

DIRECTORY = Path(__file__).parent / "recorded_runs"
RECORDINGS = sorted(DIRECTORY.glob("*.json"))
LARGEST_ERROR = 0.25
"""Largest error of the predicted total time, relative to the actual one."""
LEAST_SHARE_IN_RANGE, LARGEST_WIDTH = 0.8, 2.5
"""Share of a run's time in which the remaining time lies in its range, and the range's width."""


def late_errors(errors: list[tuple[float, float]], *, after: float = AFTER) -> list[float]:
    return [error for part, error in errors if part >= after]


def test_there_are_recordings_with_and_without_evaluation() -> None:
    stages = [{moment.stage for moment in RecordedRun.read(file).moments} for file in RECORDINGS]
    assert len(stages) >= 2
    assert {Stage.EVALUATE in run for run in stages} == {True, False}
    for run in stages:
        assert run >= {Stage.LOAD, Stage.CALIBRATE, Stage.ALLOCATE, Stage.COMPRESS, Stage.VERIFY}


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_total_time_is_predicted_after_a_fifth_of_a_run(file: Path) -> None:
    run = RecordedRun.read(file)
    errors = late_errors(run.end_errors())
    assert len(errors) > 50
    assert max(map(abs, errors)) <= LARGEST_ERROR


@pytest.mark.parametrize(
    ("earlier", "file"), list(permutations(RECORDINGS, 2)), ids=lambda file: file.stem
)
def test_total_time_is_predicted_early_from_another_run(earlier: Path, file: Path) -> None:
    run = RecordedRun.read(file)
    expected = expected_seconds(run.modelled, [RecordedRun.read(earlier).past()])
    errors = run.end_errors(expected)
    assert max(map(abs, late_errors(errors))) <= LARGEST_ERROR
    assert errors[0][0] == run.moments[0].seconds / run.seconds  # from the first event on
    assert max(map(abs, late_errors(errors, after=0.05))) <= LARGEST_ERROR


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_the_remaining_time_lies_in_its_range_for_most_of_a_run(file: Path) -> None:
    run = RecordedRun.read(file)
    (earlier,) = (other for other in RECORDINGS if other != file)
    expected = expected_seconds(run.modelled, [RecordedRun.read(earlier).past()])
    for seconds in (None, expected):
        share, width = run.time_in_range(seconds)
        assert share >= LEAST_SHARE_IN_RANGE
        assert width <= LARGEST_WIDTH


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_the_fraction_of_a_recorded_run_never_falls(file: Path) -> None:
    moments = RecordedRun.read(file).moments
    assert moments[0].fraction == 0.0
    assert moments[-1].fraction == 1.0
    assert all(after.fraction >= before.fraction for before, after in pairwise(moments))
