"""A sweep's state and its Pareto table follow from its jobs."""

from __future__ import annotations

import pytest

from app.domain.job import Job, JobResult, Speedup
from app.domain.lifecycle import State
from app.domain.sweep import (
    SweepProgress,
    SweepState,
    SweepUrls,
    in_order,
    pareto_table,
    size_checks,
)
from intraslice_core.config import CompressionConfig


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], SweepState.EMPTY),
        ([State.QUEUED, State.QUEUED], SweepState.QUEUED),
        ([State.QUEUED, State.SUCCEEDED], SweepState.RUNNING),
        ([State.RUNNING, State.FAILED], SweepState.RUNNING),
        ([State.CANCELLING, State.CANCELLED], SweepState.RUNNING),
        ([State.SUCCEEDED, State.SUCCEEDED], SweepState.SUCCEEDED),
        ([State.SUCCEEDED, State.CANCELLED], SweepState.CANCELLED),
        ([State.SUCCEEDED, State.CANCELLED, State.FAILED], SweepState.FAILED),
    ],
)
def test_the_state_of_a_finished_sweep_is_the_worst_of_its_jobs(
    states: list[State], expected: SweepState
) -> None:
    assert SweepProgress.of((state, None) for state in states).state is expected


def test_progress_is_the_mean_over_jobs() -> None:
    progress = SweepProgress.of(
        [(State.SUCCEEDED, 0.9), (State.RUNNING, 0.5), (State.QUEUED, None), (State.FAILED, 0.1)]
    )
    assert progress.fraction == pytest.approx((1.0 + 0.5 + 0.0 + 1.0) / 4)


def job(name: str, ratio: float, result: JobResult | None) -> Job:
    """Build a job with only the fields that the table reads."""
    values = {
        "id": name,
        "compression": CompressionConfig(ratio=ratio),
        "state": State.SUCCEEDED if result else State.RUNNING,
        "result": result,
    }
    return Job.model_construct(**dict.fromkeys(Job.model_fields) | values)


def result(size: int, perplexity: float | None, decode: float | None) -> JobResult:
    return JobResult(
        params_before=200,
        params_after=size,
        bytes_before=400,
        bytes_after=2 * size,
        perplexity_before=perplexity and 10.0,
        perplexity_after=perplexity,
        speedup=Speedup(prefill=1.0, decode=decode) if decode else None,
    )


def test_dominated_points_are_marked() -> None:
    jobs = in_order(
        [
            job("worse", 0.4, result(120, 21.0, 1.1)),
            job("best", 0.5, result(100, 20.0, 1.2)),
            job("larger", 0.1, result(180, 11.0, 1.0)),
            job("faster", 0.2, result(160, 22.0, 1.9)),
        ],
        ["intraslice_plus"],
    )
    table = pareto_table(jobs)
    assert [(point.job_id, point.dominated) for point in table] == [
        ("larger", False),
        ("faster", False),
        ("worse", True),
        ("best", False),
    ]


def test_equal_points_dominate_neither() -> None:
    table = pareto_table([job(name, 0.3, result(100, 20.0, 1.2)) for name in "ab"])
    assert [point.dominated for point in table] == [False, False]


def test_points_without_speed_are_compared_by_the_measures_that_both_have() -> None:
    table = pareto_table(
        [job("a", 0.1, result(100, 20.0, None)), job("b", 0.2, result(110, 21.0, 1.5))]
    )
    assert [point.dominated for point in table] == [False, True]


def test_sizes_of_different_methods_are_checked_where_both_have_results() -> None:
    sizes = {"a": (0.2, 1000), "b": (0.2, 994), "c": (0.3, 900)}
    jobs = [job(name, ratio, result(size, 20.0, None)) for name, (ratio, size) in sizes.items()]
    points = pareto_table([*jobs, job("d", 0.3, None)])
    (check,) = size_checks(points)
    assert (check.ratio, check.equal) == (0.2, False)


def test_jobs_of_a_ratio_are_in_the_order_of_the_methods() -> None:
    first, second, third = (job(name, 0.2, None) for name in "abc")
    first = first.model_copy(update={"compression": CompressionConfig(ratio=0.2, method="flap")})
    ordered = in_order([third, first, second], ["intraslice_plus", "flap"])
    assert [entry.id for entry in ordered] == ["b", "c", "a"]


def test_only_few_jobs_have_a_path_to_their_comparison() -> None:
    ids = [f"job_{number}" for number in range(21)]
    assert SweepUrls.of("s", ids[:1]).compare is None
    assert SweepUrls.of("s", ids[:20]).compare is not None
    assert SweepUrls.of("s", ids).compare is None


def test_points_without_quality_are_not_compared() -> None:
    table = pareto_table(
        [job("a", 0.1, None), job("b", 0.2, result(1, None, 9.0)), job("c", 0.3, result(9, 9, 1.0))]
    )
    assert [point.dominated for point in table] == [None, None, False]
    assert table[0].bytes_after is None
    assert table[1].bytes_after == 2
