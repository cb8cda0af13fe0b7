"""Stage shares, the remaining time, sub-steps and the heartbeat."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from intraslice_core import progress
from intraslice_core import run as run_module
from intraslice_core.config import CompressionConfig, EvaluationConfig, RecoveryConfig
from intraslice_core.cost_model import (
    allocation_seconds,
    evaluation_seconds,
    expected_durations,
    stage_seconds,
)
from intraslice_core.cost_model.past_runs import NEWEST_RUNS, PastRun
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.progress import (
    ProgressEvent,
    RemainingTime,
    Stage,
    StageTimer,
    never_cancelled,
    remaining_range,
    stage_shares,
)
from intraslice_core.run import Run
from intraslice_core.stage_speeds import StageSpeeds, expected_seconds
from intraslice_core.substeps import report_substep
from tests.intraslice_core.smollm2 import SMOLLM2


def test_shares_are_in_proportion_to_expected_seconds() -> None:
    shares = stage_shares({Stage.LOAD: 1.0, Stage.COMPRESS: 2.0, Stage.EVALUATE: 1.0})
    assert shares[Stage.LOAD] == (0.0, 0.25)
    assert shares[Stage.CALIBRATE] == (0.25, 0.25)
    assert shares[Stage.COMPRESS] == (0.25, 0.75)
    assert shares[Stage.PUBLISH] == (1.0, 1.0)


def test_a_stage_timer_adds_up_the_seconds_of_each_stage() -> None:
    timer = StageTimer()
    for stage, now in ((Stage.LOAD, 1.0), (Stage.VERIFY, 3.0), (Stage.LOAD, 4.0)):
        timer.enter(stage, now)
    timer.enter(Stage.LOAD, 5.0)
    assert timer.seconds_until(10.0) == {Stage.LOAD: 8.0, Stage.VERIFY: 1.0}


# -- remaining time ----------------------------------------------------------------------------


def test_restored_work_does_not_count_as_speed() -> None:
    remaining = RemainingTime(0.0)
    remaining.estimate(Stage.COMPRESS, 0.0, 0.0, end=1.0)
    remaining.skip(0.5)
    assert remaining.estimate(Stage.COMPRESS, 0.5, 0.1, end=1.0) is None
    assert remaining.estimate(Stage.COMPRESS, 0.75, 10.0, end=1.0) == pytest.approx(10.0)


def test_a_stage_that_a_cache_answers_does_not_count_as_speed() -> None:
    remaining = RemainingTime(0.0)
    remaining.estimate(Stage.CALIBRATE, 0.0, 0.0, end=0.1)
    remaining.estimate(Stage.ALLOCATE, 0.1, 10.0, end=0.5)
    remaining.estimate(Stage.COMPRESS, 0.5, 10.5, end=1.0)
    # 20.5 s for 0.2 of the run, of which 10 s for the last 0.1.
    left = remaining.estimate(Stage.COMPRESS, 0.6, 20.5, end=1.0)
    assert left == pytest.approx(0.4 * 102.5, rel=0.05)


def test_remaining_time_counts_down_while_the_fraction_stands_still() -> None:
    remaining = RemainingTime(0.0)
    assert remaining.estimate(Stage.VERIFY, 0.5, 10.0, end=0.8) == pytest.approx(10.0)
    assert remaining.estimate(Stage.VERIFY, 0.5, 14.0, end=0.8) == pytest.approx(6.0)
    assert remaining.estimate(Stage.VERIFY, 0.5, 30.0, end=0.8) == pytest.approx(4.0)


def test_a_slow_stage_is_continued_at_its_own_pace() -> None:
    remaining = RemainingTime(0.0)
    remaining.estimate(Stage.CALIBRATE, 0.0, 0.0, end=0.5)
    remaining.estimate(Stage.COMPRESS, 0.5, 10.0, end=1.0)
    left = remaining.estimate(Stage.COMPRESS, 0.75, 40.0, end=1.0)
    assert left is not None
    overall, own = 40.0 * 0.25 / 0.75, 30.0 * 0.25 / 0.25
    assert overall < left < own
    assert left == pytest.approx((overall + own) / 2)


def test_remaining_time_uses_what_the_stage_knows() -> None:
    remaining = RemainingTime(0.0)
    left = remaining.estimate(Stage.RECOVER, 0.3, 10.0, end=0.5, seconds_left=30.0)
    assert left == pytest.approx(30.0 + 40.0)
    assert remaining.estimate(Stage.RECOVER, 0.3, 15.0, end=0.5) == pytest.approx(25.0 + 40.0)


def test_earlier_runs_give_the_remaining_time_from_the_beginning() -> None:
    remaining = RemainingTime(0.0, expected=100.0)
    assert remaining.estimate(Stage.LOAD, 0.0, 0.0, end=0.1) == pytest.approx(100.0)
    # Half of a run that takes twice as long as expected.
    left = remaining.estimate(Stage.COMPRESS, 0.5, 100.0, end=1.0)
    assert left is not None
    assert 80.0 < left < 100.0


def test_the_range_of_the_remaining_time_narrows_towards_the_end() -> None:
    widths, halves = [], []
    for left in (100.0, 50.0, 10.0, 1.0):
        low, high = remaining_range(left, 100.0)
        assert 0.0 < low < left < high
        widths.append(high - low)
        halves.append(high / left)
    assert widths == sorted(widths, reverse=True)
    assert halves == sorted(halves)  # a small rest is known less exactly, relative to itself
    assert remaining_range(0.0, 100.0) == (0.0, 0.0)
    assert remaining_range(100.0, 100.0, is_early=True)[1] == pytest.approx(200.0)


# -- expected durations ------------------------------------------------------------------------


def test_reported_allocation_is_spread_by_expected_seconds() -> None:
    parts = allocation_seconds(SMOLLM2, CompressionConfig())
    reported = [step / 20 for step in range(21)]
    finished = [parts.finished(done, (0.24, 0.6)) for done in reported]
    assert finished == sorted(finished)
    assert finished[0] == 0.0
    assert finished[-1] == pytest.approx(1.0)
    assert parts.finished(0.6, (0.24, 0.6)) == pytest.approx(
        1.0 - parts.trial_compression / parts.total
    )


def test_an_allocation_without_comparison_ends_with_the_sensitivity() -> None:
    parts = allocation_seconds(SMOLLM2, CompressionConfig(allocation="uniform"))
    assert parts.trial_compression == 0.0
    assert parts.finished(1.0, (0.15, 0.75)) == pytest.approx(1.0)
    assert parts.finished(0.2, (0.15, 0.75)) == pytest.approx(parts.gradients / parts.total)


def test_expected_seconds_grow_with_every_kind_of_work() -> None:
    config, evaluation = CompressionConfig(), EvaluationConfig(benchmark=False)
    seconds = stage_seconds(SMOLLM2, config, evaluation, 2)
    recover = config.model_copy(update={"recover": RecoveryConfig(max_tokens=204_800)})
    assert Stage.RECOVER not in seconds
    assert stage_seconds(SMOLLM2, recover, None, 2)[Stage.RECOVER] > 300.0
    assert Stage.EVALUATE not in stage_seconds(SMOLLM2, config, None, 2)
    text = evaluation_seconds(SMOLLM2, evaluation, 2)
    assert text.speed == 0.0
    assert text.dense == pytest.approx(text.compressed)
    written = evaluation.model_copy(update={"perplexity": ("self",), "benchmark": True})
    assert evaluation_seconds(SMOLLM2, written, 2).dense > 1.9 * text.dense
    assert evaluation_seconds(SMOLLM2, written, 2).speed > 1.0


def test_calibration_takes_longer_where_the_model_writes_it() -> None:
    def calibrate(samples: int, self_share: float) -> float:
        text = {"source": "pydoc", "samples": samples, "self_share": self_share}
        config = CompressionConfig.model_validate({"calibration": text})
        return stage_seconds(SMOLLM2, config, None, 2)[Stage.CALIBRATE]

    assert calibrate(32, 0.5) > 2 * calibrate(32, 0.0)
    # Sequences are written at once: four times as many take less than four times as long.
    assert 1.1 * calibrate(32, 0.5) < calibrate(128, 0.5) < 4 * calibrate(32, 0.5)


def test_several_devices_shorten_what_they_divide_and_nothing_else() -> None:
    evaluation = EvaluationConfig()
    alone, two, eight = (
        stage_seconds(SMOLLM2, CompressionConfig(devices=devices), evaluation, 2)
        for devices in (1, 2, 8)
    )
    divided = {Stage.CALIBRATE, Stage.ALLOCATE, Stage.COMPRESS}
    for stage in divided:
        assert eight[stage] < two[stage] < alone[stage] < 2 * two[stage], stage
    assert {stage: alone[stage] for stage in alone if alone[stage] == eight[stage]}.keys() == (
        alone.keys() - divided
    )


def test_only_what_a_run_does_has_a_share() -> None:
    config = CompressionConfig()
    whole = expected_durations(SMOLLM2, config, None, 2, uploads=True).stages
    assert whole[Stage.VERIFY] > 0.0
    assert whole[Stage.PUBLISH] > 0.0
    least = expected_durations(SMOLLM2, config, None, 2, verify=False).stages
    assert set(whole) - set(least) == {Stage.VERIFY, Stage.PUBLISH}


# -- speeds of earlier runs --------------------------------------------------------------------


def test_runs_are_kept_by_machine_newest_first(tmp_path: Path) -> None:
    speeds = StageSpeeds(file=tmp_path / "new" / "speeds.json")
    assert speeds.read("cpu") == []
    modelled = {Stage.ALLOCATE: 10.0, Stage.COMPRESS: 10.0}
    speeds.record("cpu", modelled, {Stage.ALLOCATE: 20.0, Stage.VERIFY: 9.0})
    (run,) = speeds.read("cpu")
    assert (run.work, run.seconds) == ({Stage.ALLOCATE: 10.0}, {Stage.ALLOCATE: 20.0})
    for number in range(NEWEST_RUNS):
        speeds.record("cpu", modelled, {Stage.COMPRESS: 5.0 + number})
    assert len(speeds.read("cpu")) == NEWEST_RUNS
    assert speeds.read("cpu")[0].seconds == {Stage.COMPRESS: 4.0 + NEWEST_RUNS}
    assert speeds.read("gpu") == []
    assert [file.name for file in speeds.file.parent.iterdir()] == ["speeds.json"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"cpu": {"dream": 2.0}}', '{"cpu": {"load": 2.0}}', '{"cpu": 3}']
)
def test_an_unusable_file_of_speeds_counts_as_empty(tmp_path: Path, content: str) -> None:
    speeds = StageSpeeds(file=tmp_path / "speeds.json")
    speeds.file.write_text(content)
    assert speeds.read("cpu") == []
    speeds.record("cpu", {Stage.LOAD: 1.0}, {Stage.LOAD: 2.0})
    assert [run.seconds for run in speeds.read("cpu")] == [{Stage.LOAD: 2.0}]


def past(work: float, **seconds: float) -> PastRun:
    """Return a run with the same work in every stage."""
    measured = {Stage(stage): value for stage, value in seconds.items()}
    return PastRun(method="", work=dict.fromkeys(measured, work), seconds=measured)


def test_unmeasured_stages_are_as_slow_as_the_others() -> None:
    modelled = {Stage.ALLOCATE: 10.0, Stage.COMPRESS: 10.0, Stage.EVALUATE: 5.0}
    runs = [past(10.0, allocate=20.5, compress=40.5)]
    seconds = expected_seconds(modelled, runs)
    assert seconds[Stage.ALLOCATE] == pytest.approx(20.5)
    assert seconds[Stage.COMPRESS] == pytest.approx(40.5)
    assert seconds[Stage.EVALUATE] == pytest.approx(0.5 + 3.0 * 5.0)
    assert expected_seconds(modelled, []) == modelled


def test_a_run_of_a_tiny_model_does_not_make_a_large_one_look_slow() -> None:
    modelled = {Stage.COMPRESS: 100.0}
    tiny = past(0.02, compress=2.0)  # a hundred times as slow as the model, by its fixed part
    assert expected_seconds(modelled, [tiny])[Stage.COMPRESS] < 110.0
    alone = expected_seconds(modelled, [past(100.0, compress=300.0)])
    both = expected_seconds(modelled, [tiny, past(100.0, compress=300.0)])
    assert both[Stage.COMPRESS] == pytest.approx(alone[Stage.COMPRESS], rel=0.01)


def test_a_run_learns_from_the_run_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("intraslice_core.run.time.perf_counter", lambda: float(next(clock)))
    events: list[ProgressEvent] = []

    def new_run() -> Run:
        events.clear()
        run = Run(
            on_progress=events.append,
            should_cancel=never_cancelled,
            started=0.0,
            speeds=StageSpeeds(file=tmp_path / "speeds.json"),
        )
        run.expect(SMOLLM2, CompressionConfig(), None, 2, "cpu")
        return run

    first = new_run()
    first.report(Stage.LOAD, "opening")
    assert events[0].eta_seconds is None
    first.report(Stage.COMPRESS, "layer 1")
    first.record_speeds()
    second = new_run()
    second.report(Stage.LOAD, "opening")
    assert events[0].eta_seconds is not None
    assert second.shares[Stage.LOAD][1] != first.shares[Stage.LOAD][1]


# -- sub-steps and heartbeat -------------------------------------------------------------------


def test_substeps_repeat_the_step_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[ProgressEvent] = []
    now = 0.0
    run = Run(on_progress=events.append, should_cancel=never_cancelled, started=0.0)
    monkeypatch.setattr("intraslice_core.run.time.perf_counter", lambda: now)
    with run.reporting():
        report_substep("before any step")
        run.report(Stage.VERIFY, "loading", 0.5)
        now = 0.5
        report_substep("too soon")
        now = 1.5
        report_substep("prompt 1/3")
        now = 1.6
        report_substep("too soon again")
    report_substep("outside of a run")
    assert [event.message for event in events] == ["loading", "loading: prompt 1/3"]
    assert events[0].fraction == events[1].fraction


def test_a_long_step_repeats_its_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(run_module, "LONGEST_PAUSE_SECONDS", 0.0)
    events: list[ProgressEvent] = []
    repeated = threading.Event()

    def listen(event: ProgressEvent) -> None:
        events.append(event)
        if len(events) == 4:
            repeated.set()

    run = Run(on_progress=listen, should_cancel=never_cancelled)
    with run.reporting():
        run.report(Stage.ALLOCATE, "factorising", 0.5)
        assert repeated.wait(60.0)
    assert {(event.stage, event.message) for event in events} == {(Stage.ALLOCATE, "factorising")}
    assert len({event.fraction for event in events}) == 1
    beating = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert not beating, "the heartbeat ends with the block"


def test_a_failing_listener_ends_the_heartbeat_and_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(run_module, "LONGEST_PAUSE_SECONDS", 0.0)
    failed = threading.Event()

    def listen(event: ProgressEvent) -> None:
        if event.stage is Stage.COMPRESS or failed.is_set():
            raise CompressionCancelledError("gone")
        if threading.current_thread() is not threading.main_thread():
            failed.set()
            raise CompressionCancelledError("gone")

    run = Run(on_progress=listen, should_cancel=never_cancelled)
    with run.reporting():
        run.report(Stage.ALLOCATE, "factorising", 0.5)
        assert failed.wait(60.0)
        with pytest.raises(CompressionCancelledError):
            run.report(Stage.COMPRESS, "layer 1")
