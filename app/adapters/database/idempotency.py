"""Rows of `idempotency_keys`: requests that a client has already made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import idempotency_keys


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A project's idempotency key, the hash of its request and the job it created."""

    project_id: str
    key: str
    request_hash: str
    job_id: str


KEPT = timedelta(hours=24)


def forget_old(transaction: Transaction) -> int:
    """Remove keys older than a day; a request repeated later creates a new job."""
    old = idempotency_keys.c.created_at < func.now() - KEPT
    return transaction.execute(delete(idempotency_keys).where(old)).rowcount


def reserve(transaction: Transaction, claim: Claim) -> Claim | None:
    """Insert the claim and return None, or return the earlier claim of the key.

    A request with the same key that is being served right now makes this one wait for its end,
    up to the lock timeout.
    """
    taken = transaction.scalar(
        insert(idempotency_keys)
        .values(asdict(claim))
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    if taken is not None:
        return None
    row = transaction.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.project_id == claim.project_id,
            idempotency_keys.c.key == claim.key,
        )
    ).one()
    return Claim(
        project_id=row.project_id,
        key=row.key,
        request_hash=row.request_hash,
        job_id=row.job_id,
    )
