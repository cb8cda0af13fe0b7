"""Rows of `idempotency_keys`: which request a client has already made."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import idempotency_keys


@dataclass(frozen=True, kw_only=True)
class EarlierRequest:
    """What the key was used for."""

    request_hash: str
    job_id: str


def reserve(
    transaction: Transaction, key: str, request_hash: str, job_id: str
) -> EarlierRequest | None:
    """Take the key, or say who has it.

    A request with the same key that is being served right now makes this one wait for its end,
    up to the lock timeout.
    """
    taken = transaction.scalar(
        insert(idempotency_keys)
        .values(key=key, request_hash=request_hash, job_id=job_id)
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    if taken is not None:
        return None
    row = transaction.execute(select(idempotency_keys).where(idempotency_keys.c.key == key)).one()
    return EarlierRequest(request_hash=row.request_hash, job_id=row.job_id)
