"""Leases of `jobs`: claimed, renewed and expired, and what a worker writes while it has one."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, and_, func, select, true, update

from app.adapters.database.capability import DEVICES
from app.adapters.database.claim_conditions import claim_conditions
from app.adapters.database.engine import Transaction
from app.adapters.database.job_rows import COLUMNS, change, fetch, from_now, owned, seconds
from app.adapters.database.notifications import announcement
from app.adapters.database.tables import jobs
from app.domain.job import JobRecord, Lease, Progress
from app.domain.lifecycle import LEASED, TRANSITIONS, Action, State
from app.domain.worker import FreeSlots
from intraslice_core.progress import Stage


def claim_next(
    transaction: Transaction, owner: str, lease_seconds: float, free: FreeSlots | None = None
) -> JobRecord | None:
    """Take the lease of a queued job and raise its fencing token; None if there is none to run.

    Of the jobs that the worker's devices can run, the one of highest priority comes first, among
    equals the oldest. A job that the devices cannot run does not hold up those behind it. One that
    needs more devices than are free does, or on a CPU more memory: none is claimed, so that they
    become free.

    Args:
        transaction: the transaction of the claim.
        owner: name of the worker.
        lease_seconds: time until the lease expires.
        free: the free slots; None claims any job, as workers do that have registered no devices.
    """
    capable, has_room = _conditions(transaction, owner, free)
    following = (
        select(jobs.c.id)
        .where(jobs.c.state == State.QUEUED, capable)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    claimed = change(
        transaction,
        and_(
            jobs.c.id == following.scalar_subquery(),
            jobs.c.state.in_(TRANSITIONS[Action.CLAIM].sources),
            has_room,
            true() if free is None else len(free.slots) >= DEVICES,
        ),
        state=TRANSITIONS[Action.CLAIM].target,
        lease_owner=owner,
        lease_expires_at=from_now(lease_seconds),
        fencing_token=jobs.c.fencing_token + 1,
        attempt=jobs.c.attempt + 1,
        started_at=func.coalesce(jobs.c.started_at, func.now()),
        claimed_at=func.now(),
        stage=None,
        progress=None,
        error=None,
        next_hint_at=None,
        device_number=None if free is None else free.slots[0].number,
        further_device_numbers=None,
    )
    if claimed is not None and free is not None and claimed.compression.devices > 1:
        further = [slot.number for slot in free.slots[1 : claimed.compression.devices]]
        changed = update(jobs).where(jobs.c.id == claimed.id)
        transaction.execute(changed.values(further_device_numbers=further))
    return claimed


def _conditions(
    transaction: Transaction, owner: str, free: FreeSlots | None
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions that the worker can run a job, and that its host has room for it now.

    It can run a job once enough of its slots are free.
    """
    slot = None if free is None else free.slots[0]
    on_device, has_room = claim_conditions(transaction, owner, slot, DEVICES)
    capable = on_device if free is None else and_(on_device, free.total >= DEVICES)
    return capable, has_room


def has_waiting(
    transaction: Transaction, owner: str, free: FreeSlots | None, seconds: float
) -> bool:
    """Return whether a job that the slots could run has been queued for this many seconds.

    One that needs more devices than are free counts, as the slots are to become free for it.
    """
    query = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.QUEUED,
            jobs.c.queued_at <= func.now() - timedelta(seconds=seconds),
            *_conditions(transaction, owner, free),
        )
        .limit(1)
    )
    return transaction.scalar(query) is not None


def renew(transaction: Transaction, lease: Lease, lease_seconds: float) -> State | None:
    """Renew the lease and return the job's state; None if the lease is lost."""
    state = transaction.scalar(
        update(jobs)
        .where(owned(lease))
        .values(lease_expires_at=from_now(lease_seconds))
        .returning(jobs.c.state)
    )
    return State(state) if state is not None else None


def holds(transaction: Transaction, job_id: str, token: int) -> bool:
    """Return whether the claim with this token is the current one."""
    count = transaction.scalar(
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.id == job_id, jobs.c.fencing_token == token, jobs.c.state.in_(LEASED))
    )
    return bool(count)


def lock_owned(transaction: Transaction, lease: Lease) -> bool:
    """Return whether the lease is valid, which it then stays until the transaction ends."""
    query = select(jobs.c.id).where(owned(lease)).with_for_update()
    return transaction.scalar(query) is not None


def record_progress(
    transaction: Transaction, lease: Lease, stage: Stage, progress: Progress
) -> bool:
    """Write stage and progress; return False if the lease is lost."""
    changed = transaction.execute(
        update(jobs)
        .where(owned(lease))
        .values(stage=stage, progress=progress.model_dump(mode="json"))
        .returning(announcement(jobs.c.id))
    )
    return changed.one_or_none() is not None


def expired(transaction: Transaction, limit: int) -> list[JobRecord]:
    """Return jobs with an expired lease, locked; other reapers skip them."""
    query = (
        select(*COLUMNS)
        .where(jobs.c.lease_expires_at < func.now())
        .order_by(jobs.c.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return fetch(transaction, query)


def overdue(transaction: Transaction, grace_seconds: float, limit: int) -> list[JobRecord]:
    """Return jobs past their `max_runtime_s` that their worker did not end, locked."""
    spent = func.now() - jobs.c.claimed_at
    allowed = seconds(jobs.c.max_runtime_s) + timedelta(seconds=grace_seconds)
    query = (
        select(*COLUMNS)
        .where(jobs.c.state.in_(LEASED), jobs.c.max_runtime_s.is_not(None), spent > allowed)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return fetch(transaction, query)


def count_busy_workers(transaction: Transaction) -> int:
    """Return the number of workers that hold a lease."""
    query = select(func.count(func.distinct(jobs.c.lease_owner))).where(
        jobs.c.lease_expires_at > func.now()
    )
    return int(transaction.execute(query).scalar_one())


def raise_requirement(transaction: Transaction, lease: Lease, gpu_bytes: int) -> None:
    """Raise the memory that the job needs on a GPU, after one was too small."""
    larger = func.greatest(func.coalesce(jobs.c.gpu_bytes, 0), gpu_bytes)
    transaction.execute(update(jobs).where(owned(lease)).values(gpu_bytes=larger))
