"""Rows of `artifacts`, written once, in the transaction of the job's success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import artifacts
from app.domain.artifact import ArtifactRecord


def insert_all(transaction: Transaction, job_id: str, files: Sequence[ArtifactRecord]) -> None:
    # Not `model_dump`, which leaves the key out.
    transaction.execute(insert(artifacts), [{"job_id": job_id, **dict(file)} for file in files])


def of_job(transaction: Transaction, job_id: str) -> list[ArtifactRecord]:
    query = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name)
    return [_artifact(row) for row in transaction.execute(query)]


def find(transaction: Transaction, job_id: str, name: str) -> ArtifactRecord | None:
    query = select(artifacts).where(artifacts.c.job_id == job_id, artifacts.c.name == name)
    row = transaction.execute(query).one_or_none()
    return _artifact(row) if row is not None else None


def _artifact(row: Row[Any]) -> ArtifactRecord:
    return ArtifactRecord(
        name=row.name,
        key=row.key,
        bytes=row.bytes,
        sha256=row.sha256,
        media_type=row.media_type,
    )
