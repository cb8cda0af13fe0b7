"""Progress of one compression: pauses between events, and errors of the remaining time.

    OMP_NUM_THREADS=1 python benchmarks/progress.py MODEL [--settings FILE] [--record FILE]

`--settings` is a JSON file with the fields `compression` and `evaluation` of a job. `--record`
writes the events with their times. Tests replay such recordings, which lie in
`tests/intraslice_core/recorded_runs`, through the estimate of the remaining time. Times are CPU
seconds of this process and its children. With one thread they are wall-clock seconds of a quiet
machine: a busy machine has pauses of its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import PastRun, expected_durations
from intraslice_core.progress import ProgressEvent, RemainingTime, Shares, Stage, stage_shares

RECORDED_SECONDS = 1.0
"""Shortest time between two recorded events of a stage."""
AFTER = 0.2
"""Part of a run's time from which on the remaining time is judged."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An event, and the CPU seconds from the start of the run to its arrival."""

    seconds: float
    stage: Stage
    fraction: float
    """Finished fraction of the run."""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """Events of one run, with the seconds that the cost model gave each stage."""

    modelled: Mapping[Stage, float]
    moments: list[Moment]

    @classmethod
    def read(cls, file: Path) -> RecordedRun:
        """Read a recording."""
        recording = json.loads(file.read_text())
        return cls(
            modelled={Stage(stage): value for stage, value in recording["modelled"].items()},
            moments=[
                Moment(seconds=seconds, stage=Stage(stage), fraction=fraction)
                for seconds, stage, fraction in recording["events"]
            ],
        )

    @property
    def seconds(self) -> float:
        """Return the duration of the run."""
        return self.moments[-1].seconds

    def stage_seconds(self) -> dict[Stage, float]:
        """Return the measured seconds of each stage, from its events to the next one's."""
        seconds: dict[Stage, float] = {}
        for before, after in pairwise(self.moments):
            seconds[before.stage] = seconds.get(before.stage, 0.0) + after.seconds - before.seconds
        return seconds

    def past(self) -> PastRun:
        """Return the run as an earlier one from which others are predicted."""
        measured = self.stage_seconds()
        seconds = {stage: measured[stage] for stage in self.modelled if stage in measured}
        work = {stage: self.modelled[stage] for stage in seconds}
        return PastRun(method="", work=work, seconds=seconds)

    def end_errors(
        self, expected: Mapping[Stage, float] | None = None
    ) -> list[tuple[float, float]]:
        """Return the time of each event and the error of the total time that was predicted there.

        Both are relative to the duration of the run.

        Args:
            expected: seconds of each stage from earlier runs; None for shares by the cost model.
        """
        return [
            (moment.seconds / self.seconds, (moment.seconds + left) / self.seconds - 1.0)
            for moment, left, _ in self._replayed(expected)
        ]

    def time_in_range(self, expected: Mapping[Stage, float] | None = None) -> tuple[float, float]:
        """Return the share of the run whose remaining time lay in its range, and the range's width.

        The width is the median ratio of both ends while more than a tenth of the run is left; each
        event counts until the next one.

        Args:
            expected: seconds of each stage from earlier runs; None for shares by the cost model.
        """
        replayed = self._replayed(expected)
        ends = [moment.seconds for moment, _, _ in replayed[1:]] + [self.seconds]
        covered = inside = 0.0
        widths = []
        for (moment, _, (low, high)), end in zip(replayed, ends, strict=True):
            left = self.seconds - moment.seconds
            covered += end - moment.seconds
            inside += (end - moment.seconds) * (low <= left <= high)
            if left > self.seconds / 10:
                widths.append(high / low)
        return inside / covered, statistics.median(widths)

    def _replayed(
        self, expected: Mapping[Stage, float] | None
    ) -> list[tuple[Moment, float, tuple[float, float]]]:
        """Return the events with the remaining seconds and their range, once they are known."""
        recorded_shares = stage_shares(self.modelled)
        shares = recorded_shares if expected is None else stage_shares(expected)
        total = None if expected is None else sum(expected.values())
        remaining, replayed = RemainingTime(0.0, total), []
        for moment in self.moments:
            fraction = _rescaled(moment, recorded_shares, shares)
            end = shares[moment.stage][1]
            left = remaining.estimate(moment.stage, fraction, moment.seconds, end=end)
            if left is not None:
                replayed.append((moment, left, remaining.bounds(left, moment.seconds)))
        return replayed


def _rescaled(moment: Moment, recorded: Shares, shares: Shares) -> float:
    """Return the finished fraction of the run with other shares of the stages."""
    begin, end = recorded[moment.stage]
    done = (moment.fraction - begin) / (end - begin) if end > begin else 0.0
    low, high = shares[moment.stage]
    return low + (high - low) * min(max(done, 0.0), 1.0)


@dataclass(kw_only=True)
class Recorder:
    """Listener that keeps all events with their times."""

    process: psutil.Process = field(default_factory=psutil.Process)
    started: float = 0.0
    moments: list[Moment] = field(default_factory=list)

    def __call__(self, event: ProgressEvent) -> None:
        """Keep an event."""
        seconds = round(self._cpu_seconds() - self.started, 2)
        stage, fraction = event.stage, round(event.fraction, 4)
        self.moments.append(
            Moment(seconds=seconds, stage=stage, fraction=fraction, message=event.message)
        )
        if len(self.moments) == 1 or stage is not self.moments[-2].stage:
            print(f"{seconds:8.1f} s  {stage}: {event.message}", file=sys.stderr, flush=True)

    def start(self) -> None:
        """Start the clock."""
        self.started = self._cpu_seconds()

    def _cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        total: float = times.user + times.system + times.children_user + times.children_system
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                own = child.cpu_times()
                total += own.user + own.system
        return total


def thinned(moments: list[Moment]) -> list[Moment]:
    """Return moments that are a second apart, with the first and last of each stage."""
    sparse = moments[:1]
    for before, moment, after in zip(moments[:-1], moments[1:], [*moments[2:], None], strict=True):
        is_last = after is None or after.stage != moment.stage
        is_first = before.stage != moment.stage
        if is_first or is_last or moment.seconds - sparse[-1].seconds >= RECORDED_SECONDS:
            sparse.append(moment)
    return sparse


def longest_pauses(moments: list[Moment]) -> dict[Stage, tuple[float, str]]:
    """Return the longest pause after an event of each stage, in seconds, with its message."""
    pauses: dict[Stage, tuple[float, str]] = {}
    for before, after in pairwise(moments):
        pause = (round(after.seconds - before.seconds, 2), before.message)
        pauses[before.stage] = max(pauses.get(before.stage, (0.0, "")), pause)
    return pauses


def main() -> None:
    """Compress once and print the table and a last line of JSON."""
    parser = argparse.ArgumentParser(description="Pauses between events, and errors of the ETA")
    parser.add_argument("model", help="reference of the model, as for `intraslice compress`")
    parser.add_argument("--settings", type=Path, help="JSON file: compression and evaluation")
    parser.add_argument("--record", type=Path, help="file to write the events to")
    options = parser.parse_args()
    settings: dict[str, Any] = json.loads(options.settings.read_text()) if options.settings else {}
    compression = CompressionConfig.model_validate(settings.get("compression", {}))
    wanted = settings.get("evaluation")
    evaluation = None if wanted is None else EvaluationConfig.model_validate(wanted)
    wall = time.perf_counter()
    moments, modelled = _compress(options.model, compression, evaluation)
    run = RecordedRun(modelled=modelled, moments=moments)
    if options.record is not None:
        _write(options.record, Path(options.model).name, settings, run)
    errors = [(part, error) for part, error in run.end_errors() if part >= AFTER]
    pauses, measured = longest_pauses(moments), run.stage_seconds()
    print(f"{'stage':<12}{'CPU s':>8}{'modelled':>10}{'longest pause, s':>18}  after")
    for stage, (pause, message) in pauses.items():
        expected = modelled.get(stage, 0.0)
        print(f"{stage:<12}{measured[stage]:>8.1f}{expected:>10.1f}{pause:>18.1f}  {message}")
    in_range, width = run.time_in_range()
    result = {
        "cpu_seconds": run.seconds,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "events": len(moments),
        "longest_pause": max(pause for pause, _ in pauses.values()),
        "largest_eta_error": round(max((abs(error) for _, error in errors), default=0.0), 3),
        "eta_error_at_20_percent": round(errors[0][1], 3) if errors else None,
        "eta_in_range": round(in_range, 3),
        "eta_range_width": round(width, 2),
    }
    print(json.dumps(result))


def _compress(
    model: str, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> tuple[list[Moment], dict[Stage, float]]:
    """Compress once; return all events and the modelled seconds of each stage."""
    # Imported here: replaying a recording does not need torch.
    from intraslice_core.pipeline import compress_model

    recorder = Recorder()
    recorder.start()
    with tempfile.TemporaryDirectory(prefix="intraslice-progress-") as directory:
        report = compress_model(
            model,
            Path(directory) / "out",
            compression,
            evaluation=evaluation,
            on_progress=recorder,
        )
    item_bytes = round(report.bytes_before / report.params_before)
    durations = expected_durations(report.geometry, compression, evaluation, item_bytes)
    return recorder.moments, dict(durations.stages)


def _write(file: Path, model: str, settings: dict[str, Any], run: RecordedRun) -> None:
    """Write a recording, one event per line."""
    facts = {
        "model": model,
        "machine": f"{platform.machine()}, one thread",
        "settings": settings,
        "modelled": {stage.value: round(seconds, 3) for stage, seconds in run.modelled.items()},
    }
    events = [
        [moment.seconds, moment.stage.value, moment.fraction] for moment in thinned(run.moments)
    ]
    lines = ",\n".join(json.dumps(event) for event in events)
    head = json.dumps(facts, indent=1).removesuffix("\n}")
    file.write_text(f'{head},\n "events": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
