"""How much waits, in numbers."""

from __future__ import annotations

from sqlalchemy import extract, func, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs, outbox
from app.domain.lifecycle import TERMINAL, State

_LIVE = tuple(state for state in State if state not in TERMINAL)


def count_live_jobs(transaction: Transaction) -> dict[State, int]:
    """Jobs by state, the zeros too."""
    query = select(jobs.c.state, func.count()).where(jobs.c.state.in_(_LIVE)).group_by(jobs.c.state)
    found = {State(state): number for state, number in transaction.execute(query)}
    return {state: found.get(state, 0) for state in _LIVE}


def count_of_project(transaction: Transaction, project_id: str) -> dict[State, int]:
    """A project's live jobs by state, the zeros too."""
    query = (
        select(jobs.c.state, func.count())
        .where(jobs.c.project_id == project_id, jobs.c.state.in_(_LIVE))
        .group_by(jobs.c.state)
    )
    found = {State(state): number for state, number in transaction.execute(query)}
    return {state: found.get(state, 0) for state in _LIVE}


def count_workers(transaction: Transaction) -> int:
    """Who holds a lease that is good."""
    query = select(func.count(func.distinct(jobs.c.lease_owner))).where(
        jobs.c.lease_expires_at > func.now()
    )
    return int(transaction.execute(query).scalar_one())


def count_messages(transaction: Transaction) -> tuple[int, float]:
    """Messages not sent yet, and the age of the oldest in seconds."""
    age = extract("epoch", func.now() - func.min(outbox.c.created_at))
    number, oldest = transaction.execute(
        select(func.count(), func.coalesce(age, 0)).select_from(outbox)
    ).one()
    return int(number), float(oldest)
