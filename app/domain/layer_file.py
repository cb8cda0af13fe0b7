"""A file an attempt leaves behind in the store, so that the next can go on from it."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.artifact import attempt_prefix


@dataclass(frozen=True, kw_only=True)
class LayerFile:
    """`name` is the engine's, `key` where the store keeps it."""

    name: str
    key: str
    bytes: int
    sha256: str


def layer_key(job_id: str, token: int, name: str) -> str:
    """Scoped as all that an attempt writes."""
    return f"{attempt_prefix(job_id, token)}layers/{name}"
