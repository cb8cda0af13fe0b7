"""Concurrent requests of clients for jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.domain.errors import InvalidRequestError
from app.domain.job import JobFilter
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.services import claims, jobs
from app.services.resources import Resources
from tests.app.builders import make_request, queued

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_equal_concurrent_requests_create_one_job(resources: Resources) -> None:
    with ThreadPoolExecutor(5) as pool:
        futures = [
            pool.submit(jobs.create_job, resources, OPERATOR, make_request(), "k") for _ in range(5)
        ]
        creations = [future.result() for future in futures]
    assert len({creation.job.id for creation in creations}) == 1
    assert sorted(creation.replayed for creation in creations) == [False, True, True, True, True]
    assert len(jobs.list_jobs(resources, OPERATOR, JobFilter(), limit=10).data) == 1


def test_a_rejected_request_leaves_its_idempotency_key_free(resources: Resources) -> None:
    rejected = make_request(model=ModelSource(source="package", ref="os"))
    with pytest.raises(InvalidRequestError):
        jobs.create_job(resources, OPERATOR, rejected, "k")
    assert not jobs.create_job(resources, OPERATOR, make_request(), "k").replayed


def test_a_job_can_be_cancelled_while_it_is_claimed_and_requeued(resources: Resources) -> None:
    job = queued(resources)

    def change_hands() -> None:
        for _ in range(20):
            claimed = claims.claim_next_job(resources, "worker")
            if claimed is None:
                return
            claims.requeue_job(resources, claimed.lease, None)

    with ThreadPoolExecutor(2) as pool:
        changing = pool.submit(change_hands)
        cancelled = pool.submit(jobs.cancel_job, resources, OPERATOR, job.id).result()
        changing.result()
    assert cancelled.state in (State.CANCELLED, State.CANCELLING)
    assert jobs.get_job(resources, OPERATOR, job.id).state is State.CANCELLED
