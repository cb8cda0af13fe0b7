"""Place of a queued job in the deployment's queue: the number of the claim that takes it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from app.adapters.database import job_rows
from app.adapters.database.engine import Transaction
from app.domain.job import Job, JobFilter, Progress
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import FreeSlots
from app.services import claims, jobs
from app.services.queue_forecast import forecast
from app.services.resources import Resources
from intraslice_core.progress import Stage
from tests.app.builders import make_request, queued
from tests.app.fleets import CPU, enqueue, gpu, register, slots, with_long_leases

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
    read = jobs.get_job(resources, OPERATOR, job.id)
    assert (read.state, read.queue_position) == (State.RUNNING, None)


def test_the_start_of_a_new_job_is_forecast_from_the_projects_running_ones(
    resources: Resources,
) -> None:
    def expected(project_id: str = OPERATOR.project_id, priority: int = 5) -> tuple[object, ...]:
        queue = forecast(resources, project_id, priority)
        return queue.jobs_ahead, queue.seconds

    assert expected() == (0, None), "without workers"
    register(resources, "worker-1", CPU)
    assert expected() == (0, 0.0)
    queued(resources)
    claimed = claims.claim_next_job(with_long_leases(resources), "worker-1")
    assert claimed is not None
    assert expected() == (0, None), "the worker has not estimated it"
    progress = Progress(fraction=0.5, message="", eta_seconds=90.0)
    claims.record_progress(resources, claimed.lease, Stage.COMPRESS, progress, log=False)
    assert expected() == (0, 90.0)
    assert expected(OTHER.project_id) == (0, None), "progress of other projects is not revealed"
    queued(resources)
    assert expected() == (1, None), "how long the one ahead takes is not known"
    assert expected(priority=9) == (0, 90.0)


def test_a_job_on_several_devices_occupies_each_of_them(resources: Resources) -> None:
    pair = slots(gpu(24), gpu(24))
    register(resources, "worker-1", *(slot.device for slot in pair))
    enqueue(resources, device="gpu", devices=2)
    claimed = claims.claim_next_job(with_long_leases(resources), "worker-1", FreeSlots.of(*pair))
    assert claimed is not None
    progress = Progress(fraction=0.5, message="", eta_seconds=90.0)
    claims.record_progress(resources, claimed.lease, Stage.COMPRESS, progress, log=False)
    assert forecast(resources, OPERATOR.project_id, 5).seconds == 90.0
