"""Files of a job in the artifact store: published artifacts, and layers finished by an attempt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from pydantic import Field

from app.domain.job import JobRecord
from app.domain.resource import ApiModel

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"

_MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".txt": "text/plain",
    ".jinja": "text/plain",
    ".py": "text/x-python",
    ".sig": "text/plain",
}


class _PublishedFile(ApiModel):
    name: str
    bytes: int
    sha256: str
    media_type: str


class ArtifactRecord(_PublishedFile):
    """A published file and its key in the artifact store."""

    key: str = Field(exclude=True)


class Artifact(_PublishedFile):
    """A published file; the URL works without a key until it expires."""

    url: str
    expires_at: datetime


class Archive(ApiModel):
    """A ZIP of all published files; the URL works without a key until it expires."""

    name: str
    url: str
    expires_at: datetime


class ReportLink(ApiModel):
    """A link to a job's report page; it works without a key until it expires."""

    url: str = Field(
        examples=[
            "/v1/reports/job_01KAS3ZK5E8H2N9PWT4Y7M1QRV?expires=1772368461&signature=5f70bf18a086"
        ]
    )
    expires_at: datetime


class ArtifactList(ApiModel):
    """The published files of a job and, if there are any, the archive of all."""

    data: tuple[Artifact, ...]
    archive: Archive | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFile:
    """A file that an attempt keeps in the store so that the next attempt can resume from it.

    The engine chooses `name`; `key` is the file's place in the store.
    """

    name: str
    key: str
    bytes: int
    sha256: str


JOBS_PREFIX = "jobs/"
_ATTEMPT = re.compile(r"(?:[^/]+/)?jobs/[^/]+/attempts/(\d+)/")


def job_prefix(job: JobRecord) -> str:
    """Return the prefix of a job's keys: its own store prefix, `jobs/`, its id."""
    return f"{job.store_prefix}{JOBS_PREFIX}{job.id}/"


def attempt_prefix(job: JobRecord, token: int) -> str:
    """Return the prefix of an attempt's files; no two attempts share a fencing token."""
    return f"{job_prefix(job)}attempts/{token}/"


def attempt_token(key: str) -> int | None:
    """Return the token in a key below an `attempt_prefix`; None for any other key."""
    match = _ATTEMPT.match(key)
    return int(match[1]) if match else None


def layer_key(job: JobRecord, name: str) -> str:
    """Return the key of a `LayerFile` of the job's present attempt."""
    return f"{attempt_prefix(job, job.fencing_token)}layers/{name}"


def media_type(name: str) -> str:
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")


def lifetime(days: float) -> timedelta | None:
    """Return how long files are kept; None, for ever, if `days` is not positive."""
    return timedelta(days=days) if days > 0 else None
