"""Rows of `orphans`: prefixes of the store without an owner, and when they were listed first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs, orphans, uploads


@dataclass(frozen=True, kw_only=True)
class ListedOrphan:
    """A prefix and the time of its first listing, by the database's clock."""

    prefix: str
    listed_at: datetime


def now(transaction: Transaction) -> datetime:
    """Return the present time by the database's clock."""
    present: datetime = transaction.execute(select(func.now())).scalar_one()
    return present


def any_job(transaction: Transaction) -> bool:
    """Return whether there is any job; an empty table may await a restore."""
    return transaction.scalar(select(jobs.c.id).limit(1)) is not None


def owners(transaction: Transaction, ids: Collection[str]) -> set[str]:
    """Return those of the ids that are of a job or an upload."""
    rows: set[str] = set()
    for table in (jobs, uploads):
        rows |= set(transaction.scalars(select(table.c.id).where(table.c.id.in_(ids))))
    return rows


def list_anew(transaction: Transaction, prefixes: Collection[str]) -> None:
    """Replace the list; prefixes that were listed before keep the time of their first listing."""
    transaction.execute(delete(orphans).where(orphans.c.prefix.not_in(prefixes)))
    if prefixes:
        rows = [{"prefix": prefix} for prefix in prefixes]
        transaction.execute(insert(orphans).values(rows).on_conflict_do_nothing())


def listed(transaction: Transaction) -> list[ListedOrphan]:
    """Return the list, oldest first."""
    rows = transaction.execute(select(orphans).order_by(orphans.c.listed_at, orphans.c.prefix))
    return [ListedOrphan(prefix=row.prefix, listed_at=row.listed_at) for row in rows]


def due(transaction: Transaction, prefix: str, age: timedelta) -> datetime | None:
    """Return the present time if the prefix was first listed `age` ago or earlier, else None.

    Both times are the database's, so that no other machine's clock matters.
    """
    present: datetime | None = transaction.scalar(
        select(func.now()).where(
            orphans.c.prefix == prefix, orphans.c.listed_at <= func.now() - age
        )
    )
    return present


def remove(transaction: Transaction, prefix: str) -> None:
    """Remove a prefix whose objects are gone."""
    transaction.execute(delete(orphans).where(orphans.c.prefix == prefix))
