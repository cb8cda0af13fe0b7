"""Rows of `turns`: which of many processes does what is to be done now and then."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import turns


def take(transaction: Transaction, name: str, seconds: float) -> bool:
    """True for one asker in every `seconds`, however many there are."""
    row = insert(turns).values(name=name, taken_at=func.now())
    taken = transaction.scalar(
        row.on_conflict_do_update(
            index_elements=[turns.c.name],
            set_={"taken_at": func.now()},
            where=turns.c.taken_at < func.now() - timedelta(seconds=seconds),
        ).returning(turns.c.name)
    )
    return taken is not None
