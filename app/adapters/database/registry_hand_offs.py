"""Rows of `hand_offs`: the hand-off of a job to each target.

As with deliveries, a row is claimed for one attempt by moving `next_try_at` ahead; the worker
renews the claim while it works. An attempt records its outcome under its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import hand_offs
from app.domain.registry_hand_off import (
    DueHandOff,
    HandedOff,
    HandOff,
    HandOffState,
)
from app.domain.service import HandOffTarget

_PENDING = hand_offs.c.state == HandOffState.PENDING


def add(transaction: Transaction, job_id: str, targets: Sequence[HandOffTarget]) -> None:
    """Insert a pending hand-off to each target, in the transaction of the job's success."""
    for target in targets:
        transaction.execute(
            insert(hand_offs).values(
                job_id=job_id,
                target=target,
                state=HandOffState.PENDING,
                next_try_at=func.now(),
            )
        )


def request(
    transaction: Transaction, job_id: str, target: HandOffTarget, name: str | None
) -> HandOff:
    """Insert a pending hand-off, in place of an earlier one to the same target that has ended."""
    values: dict[str, Any] = {
        "state": HandOffState.PENDING,
        "attempts": 0,
        "created_at": func.now(),
        "finished_at": None,
        "next_try_at": func.now(),
        "reference": None,
        "url": None,
        "error": None,
        "name": name,
    }
    row = transaction.execute(
        insert(hand_offs)
        .values(job_id=job_id, target=target, **values)
        .on_conflict_do_update(index_elements=["job_id", "target"], set_=values, where=~_PENDING)
        .returning(hand_offs)
    ).one()
    return _hand_off(row)


def of_job(transaction: Transaction, job_id: str) -> list[HandOff]:
    query = select(hand_offs).where(hand_offs.c.job_id == job_id).order_by(hand_offs.c.target)
    return [_hand_off(row) for row in transaction.execute(query)]


def claim(transaction: Transaction, lease: timedelta) -> DueHandOff | None:
    """Claim the hand-off that has been due for longest, for one attempt."""
    first = (
        select(hand_offs.c.job_id, hand_offs.c.target)
        .where(hand_offs.c.next_try_at <= func.now())
        .order_by(hand_offs.c.next_try_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("first")
    )
    row = transaction.execute(
        update(hand_offs)
        .where(
            hand_offs.c.job_id == first.c.job_id,
            hand_offs.c.target == first.c.target,
        )
        .values(attempts=hand_offs.c.attempts + 1, next_try_at=func.now() + lease)
        .returning(hand_offs)
    ).one_or_none()
    if row is None:
        return None
    return DueHandOff(
        job_id=row.job_id,
        target=HandOffTarget(row.target),
        attempt=row.attempts,
        requested_at=row.created_at,
        name=row.name,
    )


def keep(transaction: Transaction, due: DueHandOff, lease: timedelta) -> None:
    """Renew the claim of an attempt that is still running."""
    _write(transaction, due, next_try_at=func.now() + lease)


def postpone(transaction: Transaction, due: DueHandOff, error: str, wait: timedelta) -> None:
    _write(transaction, due, next_try_at=func.now() + wait, error=error)


def finish(transaction: Transaction, due: DueHandOff, done: HandedOff) -> None:
    _end(transaction, due, HandOffState.DONE, reference=done.reference, url=done.url, error=None)


def give_up(transaction: Transaction, due: DueHandOff, error: str) -> None:
    _end(transaction, due, HandOffState.FAILED, error=error)


def _end(transaction: Transaction, due: DueHandOff, state: HandOffState, **values: Any) -> None:
    _write(transaction, due, state=state, next_try_at=None, finished_at=func.now(), **values)


def _write(transaction: Transaction, due: DueHandOff, **values: Any) -> None:
    transaction.execute(update(hand_offs).where(_this_try(due)).values(**values))


def _this_try(due: DueHandOff) -> ColumnElement[bool]:
    return and_(
        hand_offs.c.job_id == due.job_id,
        hand_offs.c.target == due.target,
        hand_offs.c.attempts == due.attempt,
        hand_offs.c.created_at == due.requested_at,
        _PENDING,
    )


def _hand_off(row: Row[Any]) -> HandOff:
    return HandOff.model_validate(row, from_attributes=True)
