"""Place of a queued job in the deployment's queue: the number of the claim that takes it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from app.adapters.database import job_rows, leases
from app.adapters.database.engine import Transaction
from app.domain.job import Job, JobFilter, Progress
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import GIB, Device, FreeSlots, RequiredMemory, Requirement, usable_devices
from app.services import claims, jobs
from app.services.queue_forecast import forecast
from app.services.resources import Resources
from intraslice_core.progress import Stage
from tests.app.builders import make_request, queued
from tests.app.fleets import (
    CPU,
    HOST_BYTES,
    cpu,
    enqueue,
    gpu,
    register,
    registration,
    slots,
    with_long_leases,
)

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
OTHER = replace(OPERATOR, project_id="other")
ANYWHERE = Requirement.named("auto", "auto", 1, memory=RequiredMemory())


def needs(device: str, gib: int = 1, devices: int = 1) -> Requirement:
    """Return the requirement of a job that needs so much memory on each GPU, or on its host."""
    memory = RequiredMemory(gpu_bytes=gib * GIB, host_bytes=gib * GIB)
    return Requirement.named(device, "auto", devices, memory=memory)


def runs_for(resources: Resources, seconds: float, free: FreeSlots | None = None) -> None:
    """Let worker-1 claim the next job, and estimate its remaining time."""
    claimed = claims.claim_next_job(with_long_leases(resources), "worker-1", free)
    assert claimed is not None
    progress = Progress(fraction=0.5, message="", eta_seconds=seconds)
    claims.record_progress(resources, claimed.lease, Stage.COMPRESS, progress, log=False)


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
        queue = forecast(resources, project_id, priority, ANYWHERE)
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
    runs_for(resources, 90.0, FreeSlots.of(*pair))
    assert forecast(resources, OPERATOR.project_id, 5, ANYWHERE).seconds == 90.0


@pytest.mark.parametrize(
    ("devices", "requirement", "seconds"),
    [
        ([CPU], needs("auto"), 0.0),
        ([CPU], needs("gpu"), None),
        ([CPU], needs("auto", 500), None),
        ([gpu(24)], needs("gpu", 24), 0.0),
        ([gpu(24)], needs("gpu", 25), None),
        ([gpu(24)], needs("cpu", 30), 0.0),
        ([gpu(24)], needs("gpu", devices=4), None),
        ([gpu(24)] * 4, needs("gpu", devices=4), None),
        ([gpu(24), gpu(80)], needs("gpu", 40), 0.0),
        ([CPU, gpu(24)], needs("auto"), 0.0),
        ([CPU, gpu(24)], needs("gpu"), 0.0),
        ([CPU, gpu(24)], needs("cpu"), 0.0),
    ],
)
def test_the_start_on_idle_devices_is_forecast_only_if_the_job_can_use_them(
    resources: Resources, devices: list[Device], requirement: Requirement, seconds: float | None
) -> None:
    register(resources, "worker-1", *devices)
    assert forecast(resources, OPERATOR.project_id, 5, requirement).seconds == seconds


@pytest.mark.parametrize("devices", [(cpu(64), gpu(24), gpu(80)), (gpu(24), gpu(80))])
def test_a_device_counts_as_usable_exactly_if_its_claim_takes_the_job(
    resources: Resources, devices: tuple[Device, ...]
) -> None:
    fleet = [registration(f"worker-{number}", device) for number, device in enumerate(devices)]
    for number, device in enumerate(devices):
        register(resources, f"worker-{number}", device)
    for requirement in (needs(kind, gib) for kind in ("auto", "cpu", "gpu") for gib in (9, 40, 99)):
        gib = (requirement.memory.gpu_bytes or 0) // GIB
        job = enqueue(resources, device=requirement.device, gib=gib, host_gib=gib)
        with resources.database.transaction() as transaction:
            takers = {
                (worker.id, 0)
                for worker, slot in zip(fleet, map(slots, devices), strict=True)
                if leases.has_waiting(transaction, worker.id, FreeSlots.of(*slot), 0.0)
            }
        assert takers == usable_devices(requirement, fleet).keys(), requirement
        jobs.cancel_job(resources, OPERATOR, job.id)


def test_only_jobs_on_usable_devices_delay_the_start(resources: Resources) -> None:
    small, large = slots(gpu(24), gpu(80))
    register(resources, "worker-1", small.device, large.device)
    enqueue(resources, device="gpu", gib=1)
    runs_for(resources, 20.0, FreeSlots.of(small))

    def expected(gib: int) -> float | None:
        return forecast(resources, OPERATOR.project_id, 5, needs("gpu", gib)).seconds

    assert (expected(10), expected(40)) == (0.0, 0.0)
    enqueue(resources, device="gpu", gib=1)
    runs_for(resources, 90.0, FreeSlots.of(large))
    assert (expected(10), expected(40)) == (20.0, 90.0)


def test_every_place_of_a_usable_host_counts(resources: Resources) -> None:
    register(resources, "worker-1", cpu(64, jobs_at_once=2))
    register(resources, "worker-2", cpu(8, jobs_at_once=3))
    for expected in (0.0, 0.0, 30.0):
        assert forecast(resources, OPERATOR.project_id, 5, needs("cpu", 32)).seconds == expected
        queued(resources)
        runs_for(resources, 30.0)


@pytest.mark.parametrize(("kind", "seconds"), [("auto", 0.0), ("gpu", None), ("cpu", None)])
def test_jobs_ahead_may_run_on_the_devices_of_the_other_kind(
    resources: Resources, kind: str, seconds: float | None
) -> None:
    register(resources, "worker-1", cpu(128, jobs_at_once=2), gpu(24))
    enqueue(resources)
    queue = forecast(resources, OPERATOR.project_id, 5, needs(kind))
    assert (queue.jobs_ahead, queue.seconds) == (1, seconds)


def test_a_job_ahead_that_waits_for_several_devices_holds_up_those_behind_it(
    resources: Resources,
) -> None:
    four = slots(*[gpu(24)] * 4)
    register(resources, "worker-1", *(slot.device for slot in four))
    enqueue(resources, device="gpu")
    runs_for(resources, 90.0, FreeSlots.of(*four))
    enqueue(resources, device="gpu", devices=4)

    def expected(priority: int) -> float | None:
        return forecast(resources, OPERATOR.project_id, priority, needs("gpu")).seconds

    assert (expected(5), expected(9)) == (None, 0.0)
    enqueue(resources, device="gpu")
    free = FreeSlots(slots=four[1:], total=4)
    assert claims.claim_next_job(resources, "worker-1", free) is None


def test_a_host_whose_memory_is_in_use_starts_no_job_at_once(resources: Resources) -> None:
    (slot,) = slots(cpu(64, jobs_at_once=3))
    register(resources, "worker-1", slot.device)
    enqueue(resources, host_gib=30)
    runs_for(resources, 90.0, FreeSlots.of(slot))

    def expected(gib: int, kind: str = "cpu") -> float | None:
        return forecast(resources, OPERATOR.project_id, 5, needs(kind, gib)).seconds

    assert (expected(34), expected(40), expected(40, "auto")) == (0.0, None, None)
    waiting = enqueue(resources, host_gib=40)
    assert claims.claim_next_job(resources, "worker-1", FreeSlots.of(slot)) is None
    assert expected(1) is None, "the job ahead of it waits for memory"
    jobs.cancel_job(resources, OPERATOR, waiting.id)
    register(resources, "worker-2", cpu(48))
    assert expected(40) == 0.0, "a worker with one job at a time has its memory"


def test_jobs_on_gpus_leave_the_memory_of_their_host_to_jobs_on_its_cpu(
    resources: Resources,
) -> None:
    pair = slots(gpu(24), gpu(24))
    register(resources, "worker-1", *(slot.device for slot in pair))
    enqueue(resources, device="gpu", gib=10, host_gib=100)
    runs_for(resources, 90.0, FreeSlots.of(*pair))

    def expected(gib: int) -> float | None:
        return forecast(resources, OPERATOR.project_id, 5, needs("cpu", gib)).seconds

    assert (expected(100), expected(HOST_BYTES // GIB)) == (0.0, 0.0)
    register(resources, "worker-1", *(slot.device for slot in pair), gpu(24))
    enqueue(resources, device="cpu", host_gib=100)
    others = slots(gpu(24), gpu(24), gpu(24))[1:]
    runs_for(resources, 90.0, FreeSlots(slots=others, total=3))
    assert (expected(28), expected(29)) == (0.0, None)
