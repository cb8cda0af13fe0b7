"""A published file of a job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

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


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """`name` is what clients see, `key` where the store keeps it."""

    name: str
    key: str
    bytes: int
    sha256: str
    media_type: str


JOBS_PREFIX = "jobs/"
_ATTEMPT = re.compile(r"jobs/[^/]+/attempts/(\d+)/")


def job_prefix(job_id: str) -> str:
    return f"{JOBS_PREFIX}{job_id}/"


def job_of_prefix(prefix: str) -> str:
    """The id in a `job_prefix`."""
    return prefix.removeprefix(JOBS_PREFIX).rstrip("/")


def attempt_prefix(job_id: str, token: int) -> str:
    """Scoped by the fencing token, which no two attempts share, whatever happened to them."""
    return f"{job_prefix(job_id)}attempts/{token}/"


def attempt_token(key: str) -> int | None:
    """The token in a key below an `attempt_prefix`; None for any other key."""
    found = _ATTEMPT.match(key)
    return int(found[1]) if found else None


def media_type(name: str) -> str:
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
