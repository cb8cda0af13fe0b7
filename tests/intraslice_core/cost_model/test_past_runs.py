"""Durations from past runs: fixed part and slowness of a stage, and the range of a run."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intraslice_core.cost_model.past_runs import (
    OTHER_METHOD_FACTOR,
    SEEN_FACTOR,
    WIDE_FACTOR,
    PastRun,
    StageTime,
    fit_cost,
    predict_duration,
    ratio_range,
    teaching_times,
)
from intraslice_core.progress import Stage

FIXED = 0.5
METHOD = "intraslice_plus"
positive = st.floats(0.01, 100.0)
times = st.builds(StageTime, work=st.floats(1e-3, 1e5), seconds=st.floats(1e-3, 1e5))


def on_line(fixed: float, slowness: float, *works: float) -> list[StageTime]:
    return [StageTime(work=work, seconds=fixed + slowness * work) for work in works]


def run(method: str = METHOD, predicted: float | None = None, **seconds: float) -> PastRun:
    """Return a run with 10 s of work in every stage."""
    return PastRun(
        method=method,
        work={Stage(stage): 10.0 for stage in seconds},
        seconds={Stage(stage): value for stage, value in seconds.items()},
        predicted=predicted,
    )


# -- cost of a stage ---------------------------------------------------------------------------


@given(fixed=st.floats(0.0, 20.0), slowness=st.floats(0.1, 10.0), unit=st.floats(30.0, 1e4))
def test_a_linear_cost_is_recovered_exactly(fixed: float, slowness: float, unit: float) -> None:
    observed = on_line(fixed, slowness, unit, 2 * unit, 3 * unit, 5 * unit)
    cost = fit_cost(observed, FIXED, 1.0)
    assert cost.slowness == pytest.approx(slowness, rel=1e-6)
    assert cost.fixed == pytest.approx(fixed, rel=1e-6, abs=1e-6 * observed[-1].seconds)


def test_one_disturbed_run_in_five_changes_nothing() -> None:
    observed = on_line(8.0, 2.0, 20.0, 40.0, 80.0, 100.0)
    disturbed = StageTime(work=60.0, seconds=5 * 128.0)
    cost = fit_cost([*observed, disturbed], FIXED, 1.0)
    assert cost.fixed == pytest.approx(8.0)
    assert cost.slowness == pytest.approx(2.0)


@given(observed=st.lists(times, max_size=6), fixed=positive, slowness=positive)
def test_costs_are_never_negative_and_grow_with_work(
    observed: list[StageTime], fixed: float, slowness: float
) -> None:
    cost = fit_cost(observed, fixed, slowness)
    assert cost.fixed >= 0.0
    assert cost.slowness >= 0.0
    seconds = [cost.seconds(work) for work in (0.0, 1.0, 100.0, 1e6)]
    assert all(0.0 <= less <= more for less, more in pairwise(seconds))


@given(tiny=st.lists(st.floats(0.001, 0.05), min_size=1, max_size=10))
def test_tiny_jobs_do_not_change_the_slowness(tiny: list[float]) -> None:
    large = on_line(8.0, 2.0, 20.0, 40.0, 80.0)
    # They took 8 to 9 seconds, as if the machine was hundreds of times slower.
    short = [StageTime(work=work, seconds=8.0 + 20 * work) for work in tiny]
    assert fit_cost([*short, *large], FIXED, 1.0).slowness == pytest.approx(2.0)
    assert fit_cost(short, FIXED, 3.0).slowness == 3.0


def test_tiny_jobs_teach_the_fixed_part() -> None:
    short = on_line(8.0, 2.0, 0.01, 0.02, 0.04)
    assert fit_cost(short, FIXED, 2.0).fixed == pytest.approx(8.0)
    with_one = fit_cost([*short, *on_line(8.0, 2.0, 100.0)], FIXED, 1.0)
    assert with_one.fixed == pytest.approx(8.0, rel=0.02)
    assert with_one.seconds(100.0) == pytest.approx(208.0, rel=0.05)


def test_jobs_of_one_size_leave_the_fixed_part_as_expected() -> None:
    cost = fit_cost(on_line(0.0, 3.0, 100.0, 100.0, 100.0), FIXED, 1.0)
    assert cost.seconds(100.0) == pytest.approx(300.0)
    assert cost.seconds(1000.0) == pytest.approx(3000.0, rel=0.02)


def test_two_noisy_jobs_of_similar_size_do_not_make_a_large_one_free() -> None:
    observed = [StageTime(work=10.0, seconds=12.0), StageTime(work=15.0, seconds=12.5)]
    # The line through both would give 110 s.
    assert fit_cost(observed, FIXED, 1.0).seconds(1000.0) > 500.0


def test_work_that_is_small_beside_the_largest_does_not_teach() -> None:
    small, large = on_line(0.0, 1.0, 9.0, 100.0)
    assert teaching_times([small, large], FIXED) == [large]
    assert teaching_times([small], FIXED) == [small]
    # Half a second is no longer than the fixed part that every stage may have.
    assert teaching_times(on_line(0.0, 1.0, 0.6), FIXED) == []


# -- duration of a run -------------------------------------------------------------------------


def test_without_any_run_the_cost_model_is_right_within_the_stated_factor() -> None:
    prediction = predict_duration([], METHOD, {Stage.LOAD: 1.0, Stage.COMPRESS: 60.0})
    assert prediction.expected == pytest.approx(61.0 + 3.5 + 0.5)
    assert prediction.low == pytest.approx(prediction.expected / WIDE_FACTOR)
    assert prediction.high == pytest.approx(prediction.expected * WIDE_FACTOR)


def test_a_run_of_another_method_shows_the_machine_and_leaves_a_wider_range() -> None:
    past = [run("flap", load=23.5, compress=20.5)]
    prediction = predict_duration(past, METHOD, {Stage.COMPRESS: 100.0})
    assert prediction.expected == pytest.approx(200.5, rel=0.01)
    assert prediction.high == pytest.approx(OTHER_METHOD_FACTOR * prediction.expected)
    own = predict_duration([run(compress=40.5), *past], METHOD, {Stage.COMPRESS: 10.0})
    assert own.expected == pytest.approx(40.5)
    assert own.high < SEEN_FACTOR * own.expected


def test_a_stage_that_no_run_had_is_as_slow_as_the_others() -> None:
    past = [run(compress=40.5, allocate=40.5)]
    prediction = predict_duration(past, METHOD, {Stage.COMPRESS: 10.0, Stage.RECOVER: 50.0})
    assert prediction.stages[Stage.RECOVER] == pytest.approx(0.5 + 4.0 * 50.0)


@given(
    seconds=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=8),
    ratios=st.lists(st.floats(0.1, 10.0), max_size=8),
    work=st.floats(0.0, 1e5),
)
def test_the_range_holds_the_expectation_and_grows_with_work(
    seconds: list[float], ratios: list[float], work: float
) -> None:
    past = [run(compress=value) for value in seconds]
    past += [run(predicted=10.0 / ratio, compress=10.0) for ratio in ratios]
    less, more = (
        predict_duration(past, METHOD, {Stage.COMPRESS: amount}) for amount in (work, 2.0 * work)
    )
    assert 0.0 <= less.low <= less.expected <= less.high
    assert less.expected <= more.expected
    assert less.high <= more.high * (1.0 + 1e-12)


def test_a_range_widens_beyond_the_largest_finished_run() -> None:
    past = [run(compress=10.0)]
    widths = []
    for work in (5.0, 10.0, 100.0, 1000.0):
        prediction = predict_duration(past, METHOD, {Stage.COMPRESS: work})
        widths.append(prediction.high / prediction.low)
    assert widths[0] == pytest.approx(widths[1])
    assert widths[1] < widths[2] < widths[3]


# -- range of the next ratio -------------------------------------------------------------------


def test_nine_ratios_bound_the_next_one_by_their_extremes() -> None:
    ratios = [0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.3]
    assert ratio_range(ratios) == pytest.approx((0.8, 1.3))


def test_the_range_narrows_from_the_stated_factor_to_the_errors_of_past_runs() -> None:
    widths = [high / low for low, high in (ratio_range([1.0] * runs) for runs in range(10))]
    assert widths[0] <= SEEN_FACTOR**2
    assert all(later <= earlier for earlier, later in pairwise(widths))
    assert widths[9] == pytest.approx(1.0)


def test_an_error_beyond_the_stated_factor_widens_the_range() -> None:
    assert ratio_range([5.0])[1] > SEEN_FACTOR
    assert ratio_range([0.2])[0] < 1.0 / SEEN_FACTOR


def test_four_of_five_next_ratios_lie_in_the_range() -> None:
    generator = random.Random(0)
    inside, trials = 0, 2000
    for _ in range(trials):
        ratios = [math.exp(generator.gauss(0.1, 0.3)) for _ in range(20)]
        low, high = ratio_range(ratios[:19])
        inside += low <= ratios[19] <= high
    assert inside / trials == pytest.approx(0.8, abs=0.03)
