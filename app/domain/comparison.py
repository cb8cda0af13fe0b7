"""Jobs side by side: what they were asked for, and where they were asked for different things."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.job import Job, Speedup
from intraslice_core.config import FrozenModel
from intraslice_core.reports.schema import TaskComparison


class TextQuality(FrozenModel):
    """Perplexity on one text; `ratio` is compressed over dense."""

    text: str
    dense: float
    compressed: float
    ratio: float


class TaskQuality(FrozenModel):
    """One metric of one task; `ratio` is below 1 where the compressed model does worse."""

    task: str
    metric: str
    dense: float
    compressed: float
    ratio: float | None
    """None where the dense model scored nothing, and the compressed one something."""


@dataclass(frozen=True, kw_only=True)
class ComparedJob:
    """One column; the results are None until the job has succeeded."""

    job: Job
    quality: tuple[TextQuality, ...] | None
    tasks: tuple[TaskQuality, ...] | None
    speed: Speedup | None


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting of all jobs, in their order."""

    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Columns and rows."""

    jobs: tuple[ComparedJob, ...]
    settings: tuple[SettingRow, ...]


def compared_job(job: Job, report: Mapping[str, Any] | None) -> ComparedJob:
    """A column from a job and the engine's report on it."""
    quality = tasks = None
    if report is not None:
        evaluation = report.get("evaluation") or {}
        quality = tuple(_quality(one) for one in evaluation.get("perplexity") or ())
        tasks = tuple(_task(one) for one in evaluation.get("tasks") or ())
    speed = job.result.speedup if job.result else None
    return ComparedJob(job=job, quality=quality, tasks=tasks, speed=speed)


def setting_rows(jobs: Sequence[Job]) -> tuple[SettingRow, ...]:
    """Every setting any of the jobs has, by its dotted name; None where a job has it not."""
    columns = [dict(_settings(job)) for job in jobs]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple(
        SettingRow(name=name, values=tuple(column.get(name) for column in columns))
        for name in names
    )


def _quality(entry: Mapping[str, Any]) -> TextQuality:
    dense, compressed = entry["dense"], entry["compressed"]
    return TextQuality(
        text=entry["text"], dense=dense, compressed=compressed, ratio=compressed / dense
    )


def _task(entry: Mapping[str, Any]) -> TaskQuality:
    found = TaskComparison.model_validate(entry)
    return TaskQuality(
        task=found.task,
        metric=found.metric,
        dense=found.dense,
        compressed=found.compressed,
        ratio=found.ratio if math.isfinite(found.ratio) else None,
    )


def _settings(job: Job) -> Iterator[tuple[str, Any]]:
    for name, part in (
        ("model", job.model),
        ("compression", job.compression),
        ("evaluation", job.evaluation),
    ):
        if part is not None:
            yield from _flat(name, part.model_dump(mode="json"))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(f"{name}.{key}", item)
