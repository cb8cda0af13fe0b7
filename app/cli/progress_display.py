"""Engine events as a progress bar on stderr; stdout is reserved for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from intraslice_core.launcher import is_main_process
from intraslice_core.progress import ProgressEvent, ProgressListener, Stage, ignore_progress
from intraslice_core.reports.quantities import duration_range

SECONDS_BETWEEN_LINES = 5.0
"""Least time between the lines of two sub-steps of one stage, where there is no terminal."""
_SHORTEST_ETA = 5.0
"""Seconds below which the remaining time is not counted: estimates are not that precise."""


class _Remaining(ProgressColumn):
    """Remaining time as the engine estimates it; stages differ too much for an extrapolation."""

    def render(self, task: Task) -> Text:
        """Return the time, or the reason why there is none."""
        return Text(task.fields["left"], style="progress.remaining")


def remaining(event: ProgressEvent) -> str:
    """Describe the remaining time of a run, as a range where the engine knows one."""
    eta, low, high = event.eta_seconds, event.eta_seconds_low, event.eta_seconds_high
    if eta is None:
        return "estimating…"
    if eta < _SHORTEST_ETA:
        return "a few seconds left"
    if low is None or high is None:
        low = high = eta
    return f"{duration_range(low, high)} left"


def step_text(event: ProgressEvent) -> str:
    """Return the current step with its layer, which the compression's messages name themselves."""
    if event.layer is None or event.layers is None or event.stage is Stage.COMPRESS:
        return event.message
    step, separator, substep = event.message.partition(": ")
    return f"{step} ({event.layer + 1}/{event.layers}){separator}{substep}"


@contextmanager
def show_progress() -> Iterator[ProgressListener]:
    """Yield a listener that draws a bar on a terminal, or prints lines of sub-steps elsewhere.

    Only the first process of a launcher shows anything.
    """
    if not is_main_process():
        yield ignore_progress
        return
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        yield step_lines(console)
        return
    columns = (
        TextColumn("{task.fields[stage]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _Remaining(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, stage="", left="")

        def draw(event: ProgressEvent) -> None:
            bar.update(
                task,
                completed=event.fraction,
                description=step_text(event),
                stage=event.stage.value,
                left=remaining(event),
            )

        yield draw


def quiet_transformers() -> None:
    """Silence transformers' own progress bars and warnings."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def step_lines(console: Console, clock: Callable[[], float] = time.monotonic) -> ProgressListener:
    """Return a listener that prints a line for each stage, and its sub-steps every few seconds.

    Args:
        console: console of the lines.
        clock: current time in seconds.
    """
    stage: Stage | None = None
    text, printed = "", 0.0

    def print_step(event: ProgressEvent) -> None:
        nonlocal stage, text, printed
        now = clock()
        if event.stage is not stage:
            console.print(f"[{event.stage}] {step_text(event)}", soft_wrap=True)
        elif step_text(event) != text and now - printed >= SECONDS_BETWEEN_LINES:
            step = f"  {step_text(event)} ({event.fraction:.0%}, {remaining(event)})"
            console.print(step, soft_wrap=True)
        else:
            return
        stage, text, printed = event.stage, step_text(event), now

    return print_step
