"""Rows of `api_keys`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, func, insert, or_, select, update

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import api_keys
from app.domain.api_key import ApiKey
from app.domain.principal import Scope

_COLUMNS = tuple(column for column in api_keys.c if column.name != "secret_digest")
_USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key before the database has dated it."""

    id: str
    project_id: str
    name: str
    scope: Scope
    secret_digest: str
    hint: str
    created_by: str | None
    expires_at: datetime | None


def insert_key(transaction: Transaction, key: NewKey) -> ApiKey:
    row = transaction.execute(insert(api_keys).values(vars(key)).returning(*_COLUMNS)).one()
    return _key(row)


def find(transaction: Transaction, key_id: str) -> ApiKey | None:
    row = transaction.execute(select(*_COLUMNS).where(api_keys.c.id == key_id)).one_or_none()
    return _key(row) if row is not None else None


def find_by_digest(transaction: Transaction, secret_digest: str) -> ApiKey | None:
    query = select(*_COLUMNS).where(api_keys.c.secret_digest == secret_digest)
    row = transaction.execute(query).one_or_none()
    return _key(row) if row is not None else None


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[ApiKey]:
    """Keys of a project older than `before`, newest first, the revoked ones too."""
    query = (
        select(*_COLUMNS)
        .where(api_keys.c.project_id == project_id)
        .order_by(api_keys.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(api_keys.c.id < before)
    return [_key(row) for row in transaction.execute(query)]


def revoke(transaction: Transaction, key_id: str) -> None:
    """The first revocation's time stays."""
    transaction.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


def note_use(transaction: Transaction, key_id: str) -> None:
    """At most once a minute: who reads a lot must not write a lot."""
    last = api_keys.c.last_used_at
    transaction.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, or_(last.is_(None), last < func.now() - _USE_NOTED_EVERY))
        .values(last_used_at=func.now())
    )


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey.model_validate({**row._mapping, "project": row.project_id})
