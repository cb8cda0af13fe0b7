"""Settings and results of several jobs side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from app.domain.job import Job, JobResult, JobUrls, Speedup
from app.domain.lifecycle import State
from app.domain.resource import ApiModel
from intraslice_core.config import FrozenModel
from intraslice_core.reports.schema import (
    PerplexityComparison,
    PossiblyInfinite,
    TaskComparison,
)
from intraslice_core.text_sources import Domain


class TextQuality(FrozenModel):
    """Perplexity on one text; `ratio` is compressed over dense.

    `kl` is the mean KL(dense ‖ compressed) in nats per token with its standard error,
    `top1_agreement` the fraction of tokens for which both models' most likely tokens are equal,
    `domain` the text's domain relative to the job's calibration.
    """

    text: str
    dense: PossiblyInfinite
    compressed: PossiblyInfinite
    ratio: PossiblyInfinite
    kl: float | None = None
    kl_stderr: float | None = None
    top1_agreement: float | None = None
    domain: Domain | None = None


class TaskQuality(FrozenModel):
    """A metric of a task; `ratio` is below 1 if the compressed model is worse."""

    task: str
    metric: str
    dense: float
    compressed: float
    ratio: float | None
    """None where the dense model scored 0 and the compressed model did not."""


class Size(ApiModel):
    """Parameters and bytes of weights, dense and compressed.

    `achieved_ratio` is the removed fraction of the compressible parameters.
    """

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    achieved_ratio: float | None

    @classmethod
    def of(cls, result: JobResult) -> Self:
        """Return the sizes in a job's result."""
        return cls(
            params_before=result.params_before,
            params_after=result.params_after,
            bytes_before=result.bytes_before,
            bytes_after=result.bytes_after,
            achieved_ratio=result.achieved_ratio,
        )


class ComparedJob(ApiModel):
    """A compared job; `size`, `quality`, `tasks` and `speed` are null until it has succeeded."""

    id: str
    state: State
    created_at: datetime
    labels: dict[str, str]
    size: Size | None
    quality: tuple[TextQuality, ...] | None
    tasks: tuple[TaskQuality, ...] | None
    speed: Speedup | None
    urls: JobUrls


class Setting(ApiModel):
    """A setting, with a value for each job in their order."""

    name: str
    values: tuple[Any, ...]
    differs: bool


class Comparison(ApiModel):
    """Settings and results of jobs side by side, in the requested order."""

    object: Literal["comparison"] = "comparison"
    jobs: tuple[ComparedJob, ...]
    settings: tuple[Setting, ...]


def compared_job(job: Job, report: Mapping[str, Any] | None) -> ComparedJob:
    """Return a job's column, from the job and the engine's report on it."""
    quality = tasks = None
    if report is not None:
        evaluation = report.get("evaluation") or {}
        quality = read_texts(evaluation.get("perplexity") or ())
        tasks = read_tasks(evaluation.get("tasks") or ())
    return ComparedJob(
        id=job.id,
        state=job.state,
        created_at=job.created_at,
        labels=job.labels,
        size=Size.of(job.result) if job.result else None,
        quality=quality,
        tasks=tasks,
        speed=job.result.speedup if job.result else None,
        urls=job.urls,
    )


def read_texts(entries: Iterable[Mapping[str, Any]]) -> tuple[TextQuality, ...]:
    """Return the quality on every text of a report's `evaluation.perplexity`."""
    return tuple(_quality(entry) for entry in entries)


def read_tasks(entries: Iterable[Mapping[str, Any]]) -> tuple[TaskQuality, ...]:
    """Return the scores in every task of a report's `evaluation.tasks`."""
    return tuple(_task(entry) for entry in entries)


def compared_settings(jobs: Sequence[Job]) -> tuple[Setting, ...]:
    """Return every setting of any of the jobs by its dotted name; None for jobs without it."""
    columns = [dict(_settings(job)) for job in jobs]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple(_setting(name, [column.get(name) for column in columns]) for name in names)


def _setting(name: str, values: list[Any]) -> Setting:
    differs = any(value != values[0] for value in values)
    return Setting(name=name, values=tuple(values), differs=differs)


def _quality(entry: Mapping[str, Any]) -> TextQuality:
    text = PerplexityComparison.model_validate(entry)
    return TextQuality(
        text=text.text,
        dense=text.dense,
        compressed=text.compressed,
        ratio=text.ratio,
        kl=text.kl,
        kl_stderr=text.kl_stderr,
        top1_agreement=text.top1_agreement,
        domain=text.domain,
    )


def _task(entry: Mapping[str, Any]) -> TaskQuality:
    task = TaskComparison.model_validate(entry)
    return TaskQuality(
        task=task.task,
        metric=task.metric,
        dense=task.dense,
        compressed=task.compressed,
        ratio=task.ratio if math.isfinite(task.ratio) else None,
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
