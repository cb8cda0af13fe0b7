"""Rows of `uploads`; only the store knows which parts have arrived."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Text, and_, cast, delete, exists, func, insert, or_, select, update

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs, uploads
from app.domain.lifecycle import TERMINAL
from app.domain.upload import (
    REFERENCE,
    TextColumns,
    UploadError,
    UploadRecord,
    UploadRequest,
    UploadState,
    UploadUrls,
)

_QUOTA_LOCK = 0x75706C64
"""Number of the advisory lock; the second number is the project's hash."""


def lock_quota(transaction: Transaction, project_id: str) -> None:
    """Let one creation at a time in, so that two cannot share the rest of a project's quota."""
    transaction.execute(select(func.pg_advisory_xact_lock(_QUOTA_LOCK, func.hashtext(project_id))))


def usage(transaction: Transaction, project_id: str) -> tuple[int, int]:
    """Return a project's number of open uploads, and the bytes of all that were not refused."""
    accepted = uploads.c.state != UploadState.REFUSED
    row = transaction.execute(
        select(
            func.count().filter(uploads.c.state == UploadState.OPEN),
            func.coalesce(func.sum(uploads.c.bytes).filter(accepted), 0),
        ).where(uploads.c.project_id == project_id)
    ).one()
    return int(row[0]), int(row[1])


def insert_upload(  # a row's worth
    transaction: Transaction,
    upload_id: str,
    project_id: str,
    request: UploadRequest,
    *,
    part_bytes: int,
    lifetime: timedelta,
    store_prefix: str,
) -> UploadRecord:
    row = transaction.execute(
        insert(uploads)
        .values(
            id=upload_id,
            project_id=project_id,
            kind=request.kind,
            state=UploadState.OPEN,
            files=[file.model_dump(mode="json") for file in request.files],
            bytes=request.bytes,
            part_bytes=part_bytes,
            name=request.name,
            expires_at=func.now() + lifetime,
            store_prefix=store_prefix,
        )
        .returning(uploads)
    ).one()
    return _upload(row)


def find(
    transaction: Transaction, upload_id: str, project_id: str | None = None
) -> UploadRecord | None:
    """Return an upload of the project; of any project for callers that checked access already."""
    query = select(uploads).where(uploads.c.id == upload_id)
    if project_id is not None:
        query = query.where(uploads.c.project_id == project_id)
    row = transaction.execute(query).one_or_none()
    return _upload(row) if row is not None else None


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[UploadRecord]:
    query = (
        select(uploads)
        .where(uploads.c.project_id == project_id)
        .order_by(uploads.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(uploads.c.id < before)
    return [_upload(row) for row in transaction.execute(query)]


def begin_check(transaction: Transaction, upload_id: str) -> bool:
    """Begin the check; return False if the upload is not open any more."""
    return _change(
        transaction,
        upload_id,
        UploadState.OPEN,
        state=UploadState.VERIFYING,
        checked_at=func.now(),
    )


def touch(transaction: Transaction, upload_id: str) -> bool:
    """Record that the check is running; return False if the upload is not checked any more."""
    return _change(transaction, upload_id, UploadState.VERIFYING, checked_at=func.now())


def end_check(
    transaction: Transaction,
    upload_id: str,
    error: UploadError | None,
    lifetime: timedelta | None,
    text_columns: TextColumns | None = None,
) -> bool:
    """Mark as ready, or as refused with an error; `lifetime` counts from now, None for ever."""
    state = UploadState.READY if error is None else UploadState.REFUSED
    return _change(
        transaction,
        upload_id,
        UploadState.VERIFYING,
        state=state,
        error=error and error.model_dump(mode="json"),
        text_columns=text_columns and text_columns.model_dump(mode="json"),
        expires_at=None if lifetime is None else func.now() + lifetime,
    )


def reopen_stuck(transaction: Transaction, patience: timedelta) -> list[str]:
    """Reopen uploads whose check was interrupted, so that they can be completed again."""
    return list(
        transaction.scalars(
            update(uploads)
            .where(
                uploads.c.state == UploadState.VERIFYING,
                uploads.c.checked_at < func.now() - patience,
            )
            .values(state=UploadState.OPEN)
            .returning(uploads.c.id)
        )
    )


def remove(transaction: Transaction, upload_id: str) -> bool:
    """Delete an upload; return False if a job that has not ended names it."""
    unused = and_(uploads.c.id == upload_id, ~_named_by_a_live_job())
    return bool(transaction.execute(delete(uploads).where(unused)).rowcount)


def due(transaction: Transaction, limit: int | None) -> list[UploadRecord]:
    """Return expired uploads that no unfinished job names."""
    query = (
        select(uploads)
        .where(uploads.c.expires_at < func.now(), ~_named_by_a_live_job())
        .order_by(uploads.c.expires_at)
        .limit(limit)
    )
    return [_upload(row) for row in transaction.execute(query)]


def existing(transaction: Transaction, upload_ids: Collection[str]) -> set[str]:
    """Return those of the ids that have a row."""
    return set(transaction.scalars(select(uploads.c.id).where(uploads.c.id.in_(upload_ids))))


def _named_by_a_live_job() -> Any:
    reference = REFERENCE + uploads.c.id
    return exists().where(
        jobs.c.state.not_in(TERMINAL),
        or_(
            and_(
                jobs.c.model["source"].astext == "upload",
                jobs.c.model["ref"].astext == uploads.c.id,
            ),
            func.strpos(cast(jobs.c.compression, Text), reference) > 0,
            func.strpos(cast(jobs.c.evaluation, Text), reference) > 0,
        ),
    )


def _change(transaction: Transaction, upload_id: str, source: UploadState, **values: Any) -> bool:
    guard = and_(uploads.c.id == upload_id, uploads.c.state == source)
    return bool(transaction.execute(update(uploads).where(guard).values(**values)).rowcount)


def _upload(row: Row[Any]) -> UploadRecord:
    return UploadRecord.model_validate({**row._mapping, "urls": UploadUrls.of(row.id)})
