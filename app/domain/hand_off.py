"""What a registry or a hub is told of a finished checkpoint, and how far that has come."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from string import Formatter
from typing import Any

from pydantic import Field

from app.domain.resource import ApiModel
from intraslice_core.reports.schema import CompressionReport

MANIFEST_TAG = "intraslice.manifest_sha256"
"""Says which checkpoint a registered version is: the same one is not registered twice."""
TRIES = 12
_FIRST_PAUSE = timedelta(seconds=30)
_LONGEST_PAUSE = timedelta(hours=1)
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class HandOffTarget(StrEnum):
    """Who gets the checkpoint."""

    MLFLOW = "mlflow"
    HUB = "hub"


class HandOffState(StrEnum):
    """Pending includes waiting for another try."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A checkpoint in a registry's words."""

    manifest_sha256: str
    settings: dict[str, str]
    """How it was made, by dotted name."""
    metrics: dict[str, float]
    """Sizes, perplexities, tasks and speeds."""
    tags: dict[str, str]
    """What it is."""

    @classmethod
    def of(cls, manifest: bytes, report: CompressionReport) -> CheckpointFacts:
        """From the bytes of a manifest and the report beside it."""
        digest = hashlib.sha256(manifest).hexdigest()
        said = json.loads(manifest)
        tags = {
            MANIFEST_TAG: digest,
            "intraslice.model": report.model,
            "intraslice.target": report.config.target,
            "intraslice.engine_version": report.engine_version,
        }
        if report.base_licence is not None:
            tags["intraslice.base_licence"] = report.base_licence
        if "job_id" in said:
            tags["intraslice.job_id"] = said["job_id"]
        return cls(
            manifest_sha256=digest,
            settings=dict(_flat(report.config.model_dump(mode="json"))),
            metrics=dict(_metrics(report)),
            tags=tags,
        )


@dataclass(frozen=True, kw_only=True)
class HandedOff:
    """Where a checkpoint went."""

    reference: str
    """Name and version, or repository and commit."""
    url: str
    new: bool = True
    """False: it was there already."""


@dataclass(frozen=True, kw_only=True)
class DueHandOff:
    """Claimed for one try."""

    job_id: str
    target: HandOffTarget
    attempt: int


class HandOff(ApiModel):
    """A succeeded job's checkpoint on its way to a registry or a hub."""

    target: HandOffTarget
    state: HandOffState
    attempts: int
    created_at: datetime
    finished_at: datetime | None
    next_try_at: datetime | None
    reference: str | None = Field(description="name and version, or repository and commit")
    url: str | None
    error: str | None = Field(description="of the last try, if it failed")


class HandOffList(ApiModel):
    """All of a job's; empty where the deployment hands nothing off."""

    data: tuple[HandOff, ...]


def pause(attempts: int) -> timedelta:
    """Until the next try: doubled each time, up to an hour."""
    doubled: timedelta = _FIRST_PAUSE * 2 ** max(attempts - 1, 0)
    return min(doubled, _LONGEST_PAUSE)


def registered_name(template: str, *, model: str, ratio: float | None, target: str) -> str:
    """A name made of `{model}`, `{ratio}` and `{target}`, of letters that every registry takes.

    Raises:
        ValueError: if the template names something else, or nothing is left of it.
    """
    last = model.rstrip("/").rsplit("/", 1)[-1].rsplit("@", 1)[0].split(":")[-1]
    known = {"model": last, "ratio": "size" if ratio is None else f"{ratio:g}", "target": target}
    named = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if not named <= known.keys():
        raise ValueError(f"{template!r} may name {{model}}, {{ratio}} and {{target}} only")
    name = _UNUSUAL.sub("-", template.format_map(known)).strip("-.")
    if not name:
        raise ValueError(f"nothing is left of the name {template!r}")
    return name


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _metrics(report: CompressionReport) -> Iterator[tuple[str, float]]:
    yield "params_before", float(report.params_before)
    yield "params_after", float(report.params_after)
    yield "bytes_before", float(report.bytes_before)
    yield "bytes_after", float(report.bytes_after)
    yield "seconds", report.seconds
    evaluation = report.evaluation
    if evaluation is None:
        return
    for one in evaluation.perplexity:
        yield f"perplexity/{_metric(one.text)}/dense", one.dense
        yield f"perplexity/{_metric(one.text)}/compressed", one.compressed
    for task in evaluation.tasks:
        yield f"{_metric(task.task)}/{_metric(task.metric)}/dense", task.dense
        yield f"{_metric(task.task)}/{_metric(task.metric)}/compressed", task.compressed
    if evaluation.speed is not None:
        yield "speedup/prefill", evaluation.speed.whole.prefill.ratio
        yield "speedup/decode", evaluation.speed.whole.decode.ratio


def _metric(name: str) -> str:
    """Letters that are allowed in a metric's name."""
    return _UNUSUAL.sub("-", name)
