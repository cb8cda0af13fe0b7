"""Progress without a terminal: a line for each stage, and sub-steps every few seconds."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from app.cli.progress_display import SECONDS_BETWEEN_LINES, remaining, step_lines, step_text
from intraslice_core.progress import ProgressEvent, Stage


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def event(
    *,
    eta: float | None,
    low: float | None,
    high: float | None,
    stage: Stage = Stage.COMPRESS,
    message: str = "",
) -> ProgressEvent:
    """Return an event with a remaining time and its range."""
    return ProgressEvent(
        stage=stage,
        message=message,
        fraction=0.25,
        eta_seconds=eta,
        eta_seconds_low=low,
        eta_seconds_high=high,
    )


def lines(*steps: tuple[Stage, str, float]) -> list[str]:
    """Return the lines for events with these pauses in seconds before them."""
    out, clock = StringIO(), Clock()
    show = step_lines(Console(file=out, markup=False), clock)
    for stage, message, pause in steps:
        clock.seconds += pause
        show(event(stage=stage, message=message, eta=75.0, low=61.0, high=110.0))
    return out.getvalue().splitlines()


def test_every_stage_has_a_line_and_sub_steps_follow_at_intervals() -> None:
    later = SECONDS_BETWEEN_LINES
    assert lines(
        (Stage.LOAD, "opening model", 0.0),
        (Stage.ALLOCATE, "measuring sensitivity, layer 1/30", 0.1),
        (Stage.ALLOCATE, "measuring sensitivity, layer 2/30", 0.1),
        (Stage.ALLOCATE, "measuring sensitivity, layer 9/30", later),
        (Stage.ALLOCATE, "measuring sensitivity, layer 9/30", later),
        (Stage.COMPRESS, "layer 0", 0.1),
    ) == [
        "[load] opening model",
        "[allocate] measuring sensitivity, layer 1/30",
        "  measuring sensitivity, layer 9/30 (25%, 1 to 2 minutes left)",
        "[compress] layer 0",
    ]


def test_a_step_names_its_layer_unless_the_message_does() -> None:
    step = event(eta=None, low=None, high=None, stage=Stage.ALLOCATE, message="measuring: reading")
    assert step_text(step) == "measuring: reading"
    in_layer = step.model_copy(update={"layer": 11, "layers": 30})
    assert step_text(in_layer) == "measuring (12/30): reading"
    compressing = {"stage": Stage.COMPRESS, "message": "layer 12/30: refitting"}
    assert step_text(in_layer.model_copy(update=compressing)) == "layer 12/30: refitting"


def test_the_next_run_of_a_sweep_begins_again() -> None:
    run = ((Stage.COMPRESS, "layer 0", 0.1), (Stage.EXPORT, "writing", 0.1))
    assert [line.partition(" ")[0] for line in lines(*run, *run)] == ["[compress]", "[export]"] * 2


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ((None, None, None), "estimating…"),
        ((0.4, 0.1, 2.0), "a few seconds left"),
        ((900.0, 720.0, 1200.0), "12 to 20 minutes left"),
        ((900.0, None, None), "about 15 minutes left"),
    ],
)
def test_the_remaining_time_is_a_range_and_not_invented(
    times: tuple[float | None, float | None, float | None], text: str
) -> None:
    eta, low, high = times
    assert remaining(event(eta=eta, low=low, high=high)) == text
