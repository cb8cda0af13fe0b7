"""Registry hand-offs: a checkpoint's facts for a model registry or hub, and the progress."""

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
from app.domain.service import HandOffTarget
from intraslice_core.reports.schema import CompressionReport

MANIFEST_TAG = "intraslice.manifest_sha256"
"""Tag with the checkpoint's manifest hash, so that it is not registered twice."""
TRIES = 12
MOST_NAME_CHARACTERS = 96
"""Limit of the Hub for names of repositories."""
NAME_PATTERN = r"^[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*$"
"""Names that both the Hub and MLflow accept."""
_FIRST_PAUSE = timedelta(seconds=30)
_LONGEST_PAUSE = timedelta(hours=1)
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
_SEPARATORS = re.compile(r"[.-]{2,}")
_UNNAMED = "model"
"""Name of a model of whose own name no valid character is left."""


class HandOffState(StrEnum):
    """State of a hand-off; `pending` includes waiting for another attempt."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Description of a checkpoint for a model registry."""

    manifest_sha256: str
    settings: dict[str, str]
    """Compression settings by dotted name."""
    metrics: dict[str, float]
    """Sizes, perplexities, divergences, tasks and speeds."""
    tags: dict[str, str]
    """Identifying tags."""

    @classmethod
    def of(cls, manifest: bytes, report: CompressionReport) -> CheckpointFacts:
        """Return the facts in a manifest's bytes and the report beside it."""
        digest = hashlib.sha256(manifest).hexdigest()
        fields = json.loads(manifest)
        tags = {
            MANIFEST_TAG: digest,
            "intraslice.model": report.model,
            "intraslice.target": report.config.target,
            "intraslice.engine_version": report.engine_version,
        }
        if report.base_licence is not None:
            tags["intraslice.base_licence"] = report.base_licence
        if "job_id" in fields:
            tags["intraslice.job_id"] = fields["job_id"]
        return cls(
            manifest_sha256=digest,
            settings=dict(_flat(report.config.model_dump(mode="json"))),
            metrics=dict(_metrics(report)),
            tags=tags,
        )


@dataclass(frozen=True, kw_only=True)
class HandedOff:
    """Place of a checkpoint in a registry or hub."""

    reference: str
    """Name and version, or repository and commit."""
    url: str
    new: bool = True
    """False if the checkpoint was there already."""


@dataclass(frozen=True, kw_only=True)
class DueHandOff:
    """A hand-off that a worker has claimed for one attempt."""

    job_id: str
    target: HandOffTarget
    attempt: int
    requested_at: datetime
    """Time of the request, by which a late attempt of an earlier request is told apart."""
    name: str | None = None
    """Requested name; None selects that of the deployment."""


class HandOff(ApiModel):
    """The hand-off of a succeeded job's checkpoint to a model registry or hub."""

    target: HandOffTarget
    name: str | None = Field(
        default=None,
        description="Requested name of the repository or registered model; null: the service's.",
    )
    state: HandOffState
    attempts: int
    created_at: datetime
    finished_at: datetime | None
    next_try_at: datetime | None
    reference: str | None = Field(description="Name and version, or repository and commit.")
    url: str | None
    error: str | None = Field(description="Error of the last attempt, if it failed.")


class HandOffPlace(ApiModel):
    """A registry or hub to which this service can hand off a job's checkpoint."""

    target: HandOffTarget
    url: str = Field(description="Address of the server, without user and password.")
    namespace: str | None = Field(
        default=None, description="User or organisation on the Hub; null for MLflow."
    )
    private: bool | None = Field(
        default=None, description="Visibility of a new repository; null for MLflow."
    )
    name: str = Field(description="Name of the job's checkpoint unless another is requested.")


class HandOffList(ApiModel):
    """Latest hand-off of a job to each target, and the targets that the service has."""

    data: tuple[HandOff, ...]
    places: tuple[HandOffPlace, ...] = Field(
        default=(), description="Where the checkpoint can be handed off; empty if nowhere."
    )


def pause(attempts: int) -> timedelta:
    """Return the pause before the next attempt: doubled each time, up to an hour."""
    doubled: timedelta = _FIRST_PAUSE * 2 ** max(attempts - 1, 0)
    return min(doubled, _LONGEST_PAUSE)


def registered_name(
    template: str, *, model: str, ratio: float | None, target: str, project: str | None = None
) -> str:
    """Return a name from `{model}`, `{ratio}`, `{target}` and `{project}` for any registry.

    It matches `NAME_PATTERN`, so that clients can send it back as the requested name.

    Args:
        template: text with these fields in braces.
        model: reference, of which the last part is taken.
        ratio: compression ratio; None where a size was requested.
        target: target of the compression.
        project: project of the job; None where there is none, and the template may not name it.

    Raises:
        ValueError: if the template has another field, or no valid character is left.
    """
    last = model.rstrip("/").rsplit("/", 1)[-1].rsplit("@", 1)[0].split(":")[-1]
    values = {
        "model": _valid(last) or _UNNAMED,
        "ratio": "size" if ratio is None else f"{ratio:g}",
        "target": target,
    } | ({} if project is None else {"project": project})
    named = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if not named <= values.keys():
        *first, last_field = (f"{{{field}}}" for field in values)
        raise ValueError(f"{template!r} may name {', '.join(first)} and {last_field} only")
    name = _valid(template.format_map(values))
    if not name:
        raise ValueError(f"nothing is left of the name {template!r}")
    return name


def _valid(name: str) -> str:
    """Return a name without what registries reject; empty if nothing is left."""
    single = _SEPARATORS.sub("-", _UNUSUAL.sub("-", name)).strip("-.")
    return single[:MOST_NAME_CHARACTERS].rstrip("-.")


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
    for text in evaluation.perplexity:
        yield f"perplexity/{_metric(text.text)}/dense", text.dense
        yield f"perplexity/{_metric(text.text)}/compressed", text.compressed
        if text.kl is not None:
            yield f"kl/{_metric(text.text)}", text.kl
        if text.top1_agreement is not None:
            yield f"top1_agreement/{_metric(text.text)}", text.top1_agreement
    for task in evaluation.tasks:
        yield f"{_metric(task.task)}/{_metric(task.metric)}/dense", task.dense
        yield f"{_metric(task.task)}/{_metric(task.metric)}/compressed", task.compressed
    if evaluation.speed is not None:
        yield "speedup/prefill", evaluation.speed.whole.prefill.ratio
        yield "speedup/decode", evaluation.speed.whole.decode.ratio


def _metric(name: str) -> str:
    """Return the name with only those characters that metric names may have."""
    return _UNUSUAL.sub("-", name)
