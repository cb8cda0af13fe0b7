"""Place of a queued job in the deployment's queue: the number of the claim that takes it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from app.adapters.database import job_rows
from app.adapters.database.engine import Transaction
from app.domain.job import Job, JobFilter
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import claims, jobs
from app.services.resources import Resources
from tests.app.builders import make_request, queued

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
OTHER = replace(OPERATOR, project_id="other")


def place(resources: Resources, job_id: str) -> int | None:
    return jobs.get_job(resources, OPERATOR, job_id).queue_position


def test_positions_are_the_order_of_the_claims_over_all_projects(resources: Resources) -> None:
    order = random.Random(0)
    for _ in range(12):
        principal = order.choice([OPERATOR, OTHER])
        request = make_request(priority=order.choice([0, 5, 9]))
        jobs.create_job(resources, principal, request)
    listed = jobs.list_jobs(resources, OPERATOR, JobFilter(), limit=100).data
    others = jobs.list_jobs(resources, OTHER, JobFilter(), limit=100).data
    assert listed
    assert others
    expected = {job.id: job.queue_position for job in (*listed, *others)}
    assert {job.id: place(resources, job.id) for job in listed}.items() <= expected.items()
    claimed = [claims.claim_next_job(resources, "worker-1") for _ in range(12)]
    assert {job.id: number for number, job in enumerate(claimed, 1) if job} == expected


def test_positions_move_up_and_end_with_the_claim(resources: Resources) -> None:
    first, second = queued(resources), queued(resources)
    assert (first.queue_position, second.queue_position) == (1, 2)
    urgent = queued(resources, priority=9)
    assert [place(resources, job.id) for job in (urgent, first, second)] == [1, 2, 3]
    claimed = claims.claim_next_job(resources, "worker-1")
    assert claimed is not None
    assert claimed.queue_position is None
    assert jobs.pause_job(resources, OPERATOR, first.id).queue_position is None
    assert place(resources, second.id) == 1
    assert jobs.resume_job(resources, OPERATOR, first.id).queue_position == 1


def test_a_job_that_leaves_the_queue_before_its_place_is_read_is_running(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(resources)
    places = job_rows.positions

    def claimed_first(transaction: Transaction, records: Iterable[Job]) -> dict[str, int]:
        monkeypatch.undo()
        assert claims.claim_next_job(resources, "worker-1")
        return places(transaction, records)

    monkeypatch.setattr(job_rows, "positions", claimed_first)
    found = jobs.get_job(resources, OPERATOR, job.id)
    assert (found.state, found.queue_position) == (State.RUNNING, None)
