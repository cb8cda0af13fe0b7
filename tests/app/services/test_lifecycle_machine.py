"""Random sequences of requests, worker writes and expiries never break the lifecycle of a job.

The test compares a model of one job with the real job in PostgreSQL. A worker is represented by the
leases it received; a dead worker is a lease that is not renewed, and its late writes are tried too.
"""

from __future__ import annotations

import shutil
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from app.domain.artifact import attempt_prefix
from app.domain.errors import IllegalTransitionError, LeaseLostError
from app.domain.job import Job, JobError
from app.domain.lifecycle import LEASED, TERMINAL, State, legal_changes
from app.domain.principal import OPERATOR
from app.services import claims, jobs
from app.services.resources import Resources
from tests.app.builders import queued, succeeded

pytestmark = pytest.mark.postgres
ERROR = JobError(code="out_of_memory", message="killed", retryable=True)


class Lifecycle(RuleBasedStateMachine):
    """One job, any number of workers."""

    resources: ClassVar[Resources]
    claimed = Bundle("claimed")

    @initialize()
    def submit(self) -> None:
        self.job_id = queued(self.resources).id
        self.state = State.QUEUED
        self.successes = 0
        self.tokens: list[int] = []

    def job(self) -> Job:
        return jobs.get_job(self.resources, OPERATOR, self.job_id)

    @rule(verb=st.sampled_from(["cancel_job", "pause_job", "resume_job", "retry_job"]))
    def request(self, verb: str) -> None:
        try:
            getattr(jobs, verb)(self.resources, OPERATOR, self.job_id)
        except IllegalTransitionError:
            assert self.job().state is self.state

    @rule(target=claimed, owner=st.sampled_from(["a", "b"]))
    def claim(self, owner: str) -> Job | None:
        job = claims.claim_next_job(self.resources, owner)
        assert (job is not None) == (self.state is State.QUEUED)
        if job is not None:
            assert job.fencing_token not in self.tokens
            self.tokens.append(job.fencing_token)
        return job

    @rule(job=claimed, what=st.sampled_from(["fail", "requeue", "give_back", "cancel", "pause"]))
    def worker_writes(self, job: Job | None, what: str) -> None:
        writes = {
            "fail": lambda lease: claims.fail_job(self.resources, lease, ERROR),
            "requeue": lambda lease: claims.requeue_job(self.resources, lease, ERROR),
            "give_back": lambda lease: claims.requeue_job(self.resources, lease, None),
            "cancel": lambda lease: claims.finish_cancel(self.resources, lease),
            "pause": lambda lease: claims.finish_pause(self.resources, lease),
        }
        if job is None or (what == "requeue" and job.attempt >= job.max_attempts):
            return
        before = self.job()
        try:
            writes[what](job.lease)
        except LeaseLostError:
            assert self.job() == before
        else:
            assert before.fencing_token == job.fencing_token

    @rule(job=claimed)
    def worker_publishes(self, job: Job | None) -> None:
        if job is None:
            return
        shutil.rmtree(self.resources.work_dir / job.id, ignore_errors=True)
        before = self.job()
        stored = self.resources.store.keys(attempt_prefix(job, job.fencing_token))
        if stored:
            return  # an attempt uploads once; the store rejects existing keys
        try:
            succeeded(self.resources, job)
        except LeaseLostError:
            assert self.job() == before
        else:
            assert before.fencing_token == job.fencing_token
            self.successes += 1

    @precondition(lambda self: self.state in LEASED)
    @rule()
    def lease_expires_and_is_reaped(self) -> None:
        with self.resources.database.transaction() as transaction:
            transaction.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))
        (reaped,) = claims.reap_expired(self.resources)
        assert reaped.state not in LEASED

    @rule()
    def valid_leases_are_not_reaped(self) -> None:
        assert claims.reap_expired(self.resources) == []

    @invariant()
    def the_job_is_consistent(self) -> None:
        job = self.job()
        assert job.state is self.state or (self.state, job.state) in legal_changes()
        self.state = job.state
        assert (job.finished_at is not None) == (job.state in TERMINAL)
        assert 0 <= job.attempt <= job.max_attempts
        events = jobs.list_events(self.resources, OPERATOR, self.job_id, after=0, limit=1000).data
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        files = jobs.list_artifacts(self.resources, OPERATOR, self.job_id)
        assert self.successes <= 1
        assert (job.state is State.SUCCEEDED) == bool(files) == (self.successes == 1)

    def teardown(self) -> None:
        with self.resources.database.transaction() as transaction:
            transaction.execute(text("DELETE FROM jobs"))


def test_no_sequence_reaches_an_illegal_state_or_publishes_twice(resources: Resources) -> None:
    Lifecycle.resources = resources
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
