"""Rows of `layer_files`, written while a job runs and removed once no attempt can resume."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import layer_files
from app.domain.artifact import LayerFile


def insert_new(transaction: Transaction, job_id: str, file: LayerFile) -> None:
    """Insert the row, unless there is one of its name, which then has the same content."""
    row = {"job_id": job_id, **asdict(file)}
    transaction.execute(insert(layer_files).values(row).on_conflict_do_nothing())


def of_job(transaction: Transaction, job_id: str) -> list[LayerFile]:
    query = select(layer_files).where(layer_files.c.job_id == job_id).order_by(layer_files.c.name)
    return [_file(row) for row in transaction.execute(query)]


def forget(transaction: Transaction, job_id: str, name: str | None = None) -> None:
    """Delete the rows of all files of a job, or of one that is lost or damaged."""
    statement = delete(layer_files).where(layer_files.c.job_id == job_id)
    if name is not None:
        statement = statement.where(layer_files.c.name == name)
    transaction.execute(statement)


def _file(row: Row[Any]) -> LayerFile:
    return LayerFile(name=row.name, key=row.key, bytes=row.bytes, sha256=row.sha256)
