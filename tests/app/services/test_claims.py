"""Leases and fencing tokens, enforced by the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import text

from app.adapters.database import job_changes, leases
from app.adapters.database import jobs as job_rows
from app.adapters.database.engine import Transaction
from app.domain.errors import IllegalTransitionError, LeaseLostError
from app.domain.job import Job, JobError, JobResult, Lease, Progress
from app.domain.lifecycle import LEASED, TRANSITIONS, Action, State
from app.domain.principal import OPERATOR
from app.services import claims, jobs, publication
from app.services.resources import Resources
from intraslice_core.progress import Stage
from tests.app.builders import in_state, queued, running, succeeded
from tests.app.stored_report import REPORT

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
ERROR = JobError(code="numerical", message="NaN")
PROGRESS = Progress(fraction=0.5, message="half")


def perform(resources: Resources, job: Job, action: Action, lease: Lease) -> Job | None:
    """Run only the guarded UPDATE of one action."""
    result = publication.summarise(REPORT)
    owner = lease if job.state in LEASED else None
    writes: dict[Action, Callable[[Transaction], Job | None]] = {
        Action.CLAIM: lambda t: leases.claim_next(t, "other", 5.0),
        Action.SUCCEED: lambda t: job_changes.succeed(t, lease, result, REPORT),
        Action.FAIL: lambda t: job_changes.fail(t, lease, ERROR),
        Action.EXPIRE: lambda t: expire_in_queue(t, job),
        Action.REQUEUE: lambda t: job_changes.requeue(t, lease, counts=True, error=ERROR),
        Action.REQUEST_PAUSE: lambda t: job_changes.request_pause(t, job.id),
        Action.PAUSE: lambda t: job_changes.pause(t, job.id, owner),
        Action.RESUME: lambda t: job_changes.resume(t, job.id),
        Action.REQUEST_CANCEL: lambda t: job_changes.request_cancel(t, job.id),
        Action.CANCEL: lambda t: job_changes.cancel(t, job.id, owner),
        Action.RETRY: lambda t: job_changes.retry(t, job.id),
    }
    with resources.database.transaction() as transaction:
        return writes[action](transaction)


def expire_in_queue(transaction: Transaction, job: Job) -> Job | None:
    late = "UPDATE jobs SET max_pending_s = 1, queued_at = now() - interval '2 seconds'"
    transaction.execute(text(late))
    ended = job_changes.expire_pending(transaction, ERROR, 10)
    return job_rows.find(transaction, job.id) if ended == [job.id] else None


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("action", list(Action))
def test_the_database_allows_exactly_the_declared_transitions(
    resources: Resources, state: State, action: Action
) -> None:
    job = in_state(resources, state)
    owner = job.lease_owner or "worker-1"
    changed = perform(
        resources, job, action, Lease(job_id=job.id, owner=owner, token=job.fencing_token)
    )
    transition = TRANSITIONS[action]
    legal = state in transition.sources
    assert (changed is not None) == legal
    expected = transition.target if legal else state
    assert jobs.get_job(resources, OPERATOR, job.id).state is expected


def test_only_one_of_several_workers_claims_a_job(resources: Resources) -> None:
    job = queued(resources)
    winners: list[Job] = []

    def try_to_claim(owner: str) -> None:
        claimed = claims.claim_next_job(resources, owner)
        if claimed is not None:
            winners.append(claimed)

    threads = [threading.Thread(target=try_to_claim, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    assert winner.id == job.id
    assert (winner.state, winner.attempt, winner.fencing_token) == (State.RUNNING, 1, 1)


def test_every_claim_raises_the_fencing_token(resources: Resources) -> None:
    job = running(resources)
    claims.requeue_job(resources, job.lease, ERROR)
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    assert again.fencing_token > job.fencing_token
    assert again.attempt == 2


STALE_WRITES: dict[str, Callable[[Resources, Lease], object]] = {
    "renew": claims.renew_lease,
    "progress": lambda resources, lease: claims.record_progress(
        resources, lease, Stage.COMPRESS, PROGRESS, log=True
    ),
    "fail": lambda resources, lease: claims.fail_job(resources, lease, ERROR),
    "requeue": lambda resources, lease: claims.requeue_job(resources, lease, None),
    "cancel": claims.finish_cancel,
}


@pytest.mark.parametrize("name", STALE_WRITES)
def test_a_stale_token_cannot_write(resources: Resources, name: str) -> None:
    old = running(resources, "worker-1")
    claims.requeue_job(resources, old.lease, ERROR)
    # The same worker claims it again, so only the token distinguishes the two claims.
    new = claims.claim_next_job(resources, "worker-1")
    assert new is not None
    events = jobs.list_events(resources, OPERATOR, old.id, after=0, limit=100).data
    with pytest.raises(LeaseLostError):
        STALE_WRITES[name](resources, old.lease)
    assert jobs.get_job(resources, OPERATOR, old.id) == new
    assert jobs.list_events(resources, OPERATOR, old.id, after=0, limit=100).data == events


def test_a_stale_token_cannot_publish(resources: Resources) -> None:
    old = running(resources)
    claims.requeue_job(resources, old.lease, ERROR)
    with pytest.raises(LeaseLostError):
        succeeded(resources, old)
    assert jobs.list_artifacts(resources, OPERATOR, old.id) == []
    assert jobs.get_job(resources, OPERATOR, old.id).state is State.QUEUED


def test_a_cancelling_job_cannot_succeed(resources: Resources) -> None:
    job = running(resources)
    jobs.cancel_job(resources, OPERATOR, job.id)
    with pytest.raises(LeaseLostError):
        succeeded(resources, job)
    assert claims.finish_cancel(resources, job.lease).state is State.CANCELLED


def test_the_failure_of_a_cancelling_job_cancels_it(resources: Resources) -> None:
    job = running(resources)
    jobs.cancel_job(resources, OPERATOR, job.id)
    assert claims.fail_job(resources, job.lease, ERROR).state is State.CANCELLED


def test_requeueing_without_an_error_costs_no_attempt(resources: Resources) -> None:
    job = running(resources)
    given_back = claims.requeue_job(resources, job.lease, None)
    assert (given_back.state, given_back.attempt) == (State.QUEUED, 0)
    assert given_back.error is None


def expire(resources: Resources, lease: Lease) -> None:
    with resources.database.transaction() as transaction:
        leases.renew(transaction, lease, -1.0)


def test_a_valid_lease_is_not_reaped(resources: Resources) -> None:
    job = running(resources)
    assert claims.reap_expired(resources) == []
    assert claims.renew_lease(resources, job.lease) is State.RUNNING


def test_the_reaper_requeues_until_the_attempts_are_used_up(resources: Resources) -> None:
    job = queued(resources)
    for attempt in range(1, 4):
        claimed = claims.claim_next_job(resources, "silent")
        assert claimed is not None
        assert claimed.attempt == attempt
        expire(resources, claimed.lease)
        (reaped,) = claims.reap_expired(resources)
        assert reaped.state is (State.QUEUED if attempt < 3 else State.FAILED)
        assert claims.reap_expired(resources) == []
    assert reaped.error is not None
    assert (reaped.error.code, reaped.error.retryable) == ("worker_lost", True)
    assert claims.claim_next_job(resources, "late") is None
    types = [
        event.type
        for event in jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data
    ]
    assert types == ["queued", "started", "requeued", "started", "requeued", "started", "failed"]


def test_the_reaper_cancels_the_cancelling_job_of_a_dead_worker(resources: Resources) -> None:
    job = running(resources)
    jobs.cancel_job(resources, OPERATOR, job.id)
    expire(resources, job.lease)
    (reaped,) = claims.reap_expired(resources)
    assert reaped.state is State.CANCELLED


def test_an_expired_lease_that_was_not_reaped_can_be_renewed(resources: Resources) -> None:
    """A slow worker may continue as long as no other worker has claimed the job."""
    job = running(resources)
    expire(resources, job.lease)
    assert claims.renew_lease(resources, job.lease) is State.RUNNING
    assert claims.reap_expired(resources) == []


def test_events_of_concurrent_writers_have_no_gaps(resources: Resources) -> None:
    job = running(resources)

    def write() -> None:
        for _ in range(10):
            claims.record_progress(resources, job.lease, Stage.COMPRESS, PROGRESS, log=True)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data
    assert [event.sequence for event in events] == list(range(1, 33))


def test_cancelling_twice_leaves_one_event(resources: Resources) -> None:
    job = running(resources)
    jobs.cancel_job(resources, OPERATOR, job.id)
    jobs.cancel_job(resources, OPERATOR, job.id)
    types = [
        event.type
        for event in jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data
    ]
    assert types.count("cancel_requested") == 1


def test_an_ended_job_cannot_be_cancelled(resources: Resources) -> None:
    job = in_state(resources, State.FAILED)
    with pytest.raises(IllegalTransitionError):
        jobs.cancel_job(resources, OPERATOR, job.id)


def test_a_report_without_evaluation_is_summarised() -> None:
    result = publication.summarise(REPORT | {"evaluation": None})
    assert result == JobResult(
        params_before=1000,
        params_after=700,
        bytes_before=4000,
        bytes_after=2800,
        achieved_ratio=0.375,
    )


def test_a_locked_row_raises_an_error_instead_of_blocking(resources: Resources) -> None:
    from app.domain.errors import ResourceBusyError

    job = running(resources)
    with resources.database.transaction() as holder:
        leases.renew(holder, job.lease, 5.0)
        began = time.monotonic()
        with pytest.raises(ResourceBusyError):
            jobs.cancel_job(resources, OPERATOR, job.id)
    assert time.monotonic() - began < 10.0
