"""A published file of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

MANIFEST = "manifest.json"

_MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".txt": "text/plain",
    ".jinja": "text/plain",
    ".py": "text/x-python",
}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """`name` is what clients see, `key` where the store keeps it."""

    name: str
    key: str
    bytes: int
    sha256: str
    media_type: str


def job_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/"


def attempt_prefix(job_id: str, token: int) -> str:
    """Scoped by the fencing token, which no two attempts share, whatever happened to them."""
    return f"{job_prefix(job_id)}attempts/{token}/"


def media_type(name: str) -> str:
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
