"""Rows of `generations`: prompts of the playground, their leases and their answers.

Every change of state is an UPDATE guarded by the lifecycle table; what a worker writes also needs
its claim.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    not_,
    select,
    update,
)

from app.adapters.database import workers
from app.adapters.database.capability import several_fit_a_gpu
from app.adapters.database.claim_conditions import claim_conditions
from app.adapters.database.engine import Transaction
from app.adapters.database.job_rows import from_now
from app.adapters.database.tables import generations, jobs
from app.adapters.database.tables.base import JSON
from app.domain.generation import (
    LIVE,
    LONGEST_WAIT,
    TRANSITIONS,
    Answer,
    GenerationAction,
    GenerationClaim,
    GenerationError,
    GenerationRecord,
    GenerationRequest,
    GenerationState,
)
from app.domain.worker import Slot

_HIDDEN = {"key_id", "lease_expires_at"}
_COLUMNS = tuple(column for column in generations.c if column.name not in _HIDDEN)
_LOCK = "generations of "

_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}
"""Values of a generation that no worker runs any longer."""


def insert_new(
    transaction: Transaction,
    generation_id: str,
    job_id: str,
    key_id: str | None,
    request: GenerationRequest,
) -> GenerationRecord:
    statement = (
        insert(generations)
        .values(
            id=generation_id,
            job_id=job_id,
            key_id=key_id,
            state=GenerationState.QUEUED,
            prompt=request.prompt,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
            models=[*request.models],
            answers=[],
        )
        .returning(*_COLUMNS)
    )
    return _record(transaction.execute(statement).one())


def count_of_key(transaction: Transaction, key_id: str | None) -> int:
    """Return the number of a key's generations that have not ended; None is the operator's.

    Further calls for the same key wait for the end of the transaction, so that two requests at once
    do not both find the last free place.
    """
    lock = func.hashtextextended(f"{_LOCK}{key_id or ''}", 0)
    transaction.execute(select(func.pg_advisory_xact_lock(lock)))
    query = (
        select(func.count())
        .select_from(generations)
        .where(generations.c.state.in_(LIVE), generations.c.key_id.is_not_distinct_from(key_id))
    )
    return int(transaction.execute(query).scalar_one())


def find(transaction: Transaction, job_id: str, generation_id: str) -> GenerationRecord | None:
    query = select(*_COLUMNS).where(
        generations.c.id == generation_id, generations.c.job_id == job_id
    )
    return _fetch_one(transaction, query)


def newest(
    transaction: Transaction, job_id: str, *, before: str | None, limit: int
) -> list[GenerationRecord]:
    """Return the generations of a job that are older than `before`, newest first."""
    query = (
        select(*_COLUMNS)
        .where(generations.c.job_id == job_id)
        .order_by(generations.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(generations.c.id < before)
    return [_record(row) for row in transaction.execute(query)]


def cancel(transaction: Transaction, generation_id: str) -> GenerationRecord | None:
    """Cancel a generation that has not ended; a worker that runs it loses its lease."""
    guard = and_(
        generations.c.id == generation_id,
        generations.c.state.in_(TRANSITIONS[GenerationAction.CANCEL].sources),
    )
    return _end(transaction, guard, GenerationAction.CANCEL)


def remove(transaction: Transaction, generation_id: str) -> bool:
    """Delete a generation that has ended; return False if it has not."""
    ended = and_(generations.c.id == generation_id, generations.c.state.not_in(LIVE))
    return transaction.execute(delete(generations).where(ended)).rowcount == 1


def claim_next(
    transaction: Transaction, owner: str, lease_seconds: float, slot: Slot | None
) -> GenerationRecord | None:
    """Take the lease of the oldest queued generation whose job the slot could run on one device.

    A CPU leaves results of several GPUs to a GPU that fits: the memory that their jobs need on a
    host is that of a compression, which has few layers at a time, and a prompt loads all of them.
    """
    conditions = [*claim_conditions(transaction, owner, slot, devices=literal(1))]
    if slot is not None and slot.device.kind == "cpu":
        registered = workers.live_registrations(transaction)
        conditions.append(not_(several_fit_a_gpu(registered)))
    following = (
        select(generations.c.id)
        .join(jobs, jobs.c.id == generations.c.job_id)
        .where(
            generations.c.state.in_(TRANSITIONS[GenerationAction.CLAIM].sources),
            *conditions,
        )
        .order_by(generations.c.id)
        .limit(1)
        .with_for_update(of=generations, skip_locked=True)
        .cte("following")
    )
    return _change(
        transaction,
        generations.c.id == following.c.id,
        state=TRANSITIONS[GenerationAction.CLAIM].target,
        lease_owner=owner,
        lease_expires_at=from_now(lease_seconds),
        fencing_token=generations.c.fencing_token + 1,
        attempt=generations.c.attempt + 1,
        started_at=func.now(),
    )


def has_queued(transaction: Transaction) -> bool:
    query = select(generations.c.id).where(generations.c.state == GenerationState.QUEUED).limit(1)
    return transaction.scalar(query) is not None


def renew(transaction: Transaction, claim: GenerationClaim, lease_seconds: float) -> bool:
    """Renew the lease; return False if it is lost or the generation has ended."""
    statement = (
        update(generations).where(_owned(claim)).values(lease_expires_at=from_now(lease_seconds))
    )
    return transaction.execute(statement).rowcount == 1


def holds(transaction: Transaction, generation_id: str, token: int) -> bool:
    """Return whether the claim with this token is the current one."""
    query = select(generations.c.id).where(
        generations.c.id == generation_id,
        generations.c.fencing_token == token,
        generations.c.state == GenerationState.RUNNING,
    )
    return transaction.scalar(query) is not None


def add_answer(transaction: Transaction, claim: GenerationClaim, answer: Answer) -> bool:
    """Append an answer; return False if the lease is lost."""
    added = cast([answer.model_dump(mode="json")], JSON)
    statement = (
        update(generations).where(_owned(claim)).values(answers=generations.c.answers.concat(added))
    )
    return transaction.execute(statement).rowcount == 1


def succeed(transaction: Transaction, claim: GenerationClaim) -> GenerationRecord | None:
    return _end(transaction, _owned(claim), GenerationAction.SUCCEED)


def fail(
    transaction: Transaction, claim: GenerationClaim, error: GenerationError
) -> GenerationRecord | None:
    return _end(
        transaction, _owned(claim), GenerationAction.FAIL, error=error.model_dump(mode="json")
    )


def requeue(
    transaction: Transaction, claim: GenerationClaim, *, counts: bool
) -> GenerationRecord | None:
    """Queue a running generation again; `counts` an attempt whose worker was lost."""
    return _change(
        transaction,
        _owned(claim),
        state=TRANSITIONS[GenerationAction.REQUEUE].target,
        attempt=generations.c.attempt if counts else generations.c.attempt - 1,
        answers=[],
        started_at=None,
        **_NO_LEASE,
    )


def lost(transaction: Transaction, limit: int) -> list[GenerationRecord]:
    """Return the generations with an expired lease, locked; other reapers skip them."""
    query = (
        select(*_COLUMNS)
        .where(
            generations.c.state == GenerationState.RUNNING,
            generations.c.lease_expires_at < func.now(),
        )
        .order_by(generations.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [_record(row) for row in transaction.execute(query)]


def expire_waiting(
    transaction: Transaction, error: GenerationError, limit: int
) -> list[GenerationRecord]:
    """Fail queued generations that no worker has claimed in time."""
    waiting = (
        select(generations.c.id)
        .where(
            generations.c.state.in_(TRANSITIONS[GenerationAction.EXPIRE].sources),
            generations.c.created_at < func.now() - LONGEST_WAIT,
        )
        .order_by(generations.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(generations)
        .where(generations.c.id.in_(waiting.scalar_subquery()))
        .values(
            state=TRANSITIONS[GenerationAction.EXPIRE].target,
            finished_at=func.now(),
            error=error.model_dump(mode="json"),
        )
        .returning(*_COLUMNS)
    )
    return [_record(row) for row in transaction.execute(statement)]


def count_live(transaction: Transaction) -> dict[GenerationState, int]:
    """Return the number of generations in each state that is not terminal."""
    query = (
        select(generations.c.state, func.count())
        .where(generations.c.state.in_(LIVE))
        .group_by(generations.c.state)
    )
    counts = {GenerationState(state): number for state, number in transaction.execute(query)}
    return {state: counts.get(state, 0) for state in sorted(LIVE)}


def _owned(claim: GenerationClaim) -> ColumnElement[bool]:
    """Return the condition that this claim is the current one; it then runs."""
    return and_(
        generations.c.id == claim.generation_id,
        generations.c.state == GenerationState.RUNNING,
        generations.c.fencing_token == claim.token,
        generations.c.lease_owner == claim.owner,
    )


def _end(
    transaction: Transaction, guard: ColumnElement[bool], action: GenerationAction, **values: Any
) -> GenerationRecord | None:
    return _change(
        transaction,
        guard,
        state=TRANSITIONS[action].target,
        finished_at=func.now(),
        **_NO_LEASE,
        **values,
    )


def _change(
    transaction: Transaction, guard: ColumnElement[bool], **values: Any
) -> GenerationRecord | None:
    """Change the generation for which the guard holds; None if it holds for none."""
    statement = update(generations).where(guard).values(**values).returning(*_COLUMNS)
    return _fetch_one(transaction, statement)


def _fetch_one(transaction: Transaction, statement: Executable) -> GenerationRecord | None:
    row = transaction.execute(statement).one_or_none()
    return None if row is None else _record(row)


def _record(row: Row[Any]) -> GenerationRecord:
    return GenerationRecord.model_validate(row, from_attributes=True)
