"""Engine events as a progress bar on stderr; stdout is reserved for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from intraslice_core.progress import ProgressEvent, ProgressListener, Stage


class _Remaining(ProgressColumn):
    """Remaining time as the engine estimates it; stages differ too much for an extrapolation."""

    def render(self, task: Task) -> Text:
        """Return minutes and seconds, or an empty text while the estimate is unknown."""
        eta: float | None = task.fields["eta"]
        if eta is None:
            return Text("")
        minutes, seconds = divmod(round(eta), 60)
        return Text(f"{minutes}:{seconds:02d} left", style="progress.remaining")


@contextmanager
def show_progress() -> Iterator[ProgressListener]:
    """Yield a listener that draws a bar on a terminal, or prints one line per stage elsewhere."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        yield _stage_lines(console)
        return
    columns = (
        TextColumn("{task.fields[stage]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _Remaining(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, stage="", eta=None)

        def draw(event: ProgressEvent) -> None:
            bar.update(
                task,
                completed=event.fraction,
                description=event.message,
                stage=event.stage.value,
                eta=event.eta_seconds,
            )

        yield draw


def quiet_transformers() -> None:
    """Silence transformers' own progress bars and warnings."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _stage_lines(console: Console) -> ProgressListener:
    order, seen = list(Stage), set[Stage]()

    def print_stage(event: ProgressEvent) -> None:
        if seen and order.index(event.stage) < max(order.index(stage) for stage in seen):
            seen.clear()  # the next compression of a sweep
        if event.stage not in seen:
            seen.add(event.stage)
            console.print(f"[{event.stage}] {event.message}", soft_wrap=True)

    return print_stage
