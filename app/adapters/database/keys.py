"""Rows of `api_keys`, and a cache of those that were just read."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
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
_CACHE_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key to be inserted; the database sets its time of creation."""

    id: str
    project_id: str
    name: str
    scope: Scope
    secret_digest: str
    hint: str
    created_by: str | None
    expires_at: datetime | None


class KeyCache:
    """Keys by the digest of their secret, so that a busy client costs one read in a few seconds.

    A revocation in another process takes effect here after `seconds` at the latest.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._keys: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> ApiKey | None:
        """Return the key, unless it is not cached or was read too long ago."""
        with self._lock:
            until, key = self._keys.get(digest, (0.0, None))
        return key if time.monotonic() < until else None

    def put(self, digest: str, key: ApiKey) -> None:
        """Add a key that was just read; the oldest entry makes room for it."""
        with self._lock:
            self._keys[digest] = (time.monotonic() + self._seconds, key)
            self._keys.move_to_end(digest)
            while len(self._keys) > _CACHE_SIZE:
                self._keys.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Remove a key, so that its revocation in this process takes effect at once."""
        with self._lock:
            for digest in [d for d, (_, key) in self._keys.items() if key.id == key_id]:
                del self._keys[digest]


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
    """Return a project's keys older than `before`, newest first, including revoked ones."""
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
    """Revoke a key; the time of the first revocation stays."""
    transaction.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


def note_use(transaction: Transaction, key_id: str) -> None:
    """Record the use of a key, at most once a minute so that reads do not cause many writes."""
    last = api_keys.c.last_used_at
    transaction.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, or_(last.is_(None), last < func.now() - _USE_NOTED_EVERY))
        .values(last_used_at=func.now())
    )


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey.model_validate({**row._mapping, "project": row.project_id})
