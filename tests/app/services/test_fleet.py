"""Registrations of workers, claims by device, and reasons to wait that are never stale."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.job import JobError, Progress
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Scope
from app.domain.worker import GIB, FreeSlots, Slot, WaitingCode
from app.services import claims, fleet, jobs
from app.services.monitoring import measure_backlog, service_status
from app.services.resources import Resources
from app.services.watching import Watching
from app.telemetry.outages import DATABASE, Outages
from intraslice_core.progress import Stage
from tests.app.builders import key_of
from tests.app.fleets import CPU, HOST_BYTES, cpu, enqueue, gpu, miss_heartbeats, register, slots

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def free_slot(gib: int, **options: bool) -> FreeSlots:
    return FreeSlots.of(*slots(gpu(gib, **options)))


CPU_SLOT = FreeSlots.of(*slots(CPU))


def reason(resources: Resources, job_id: str) -> str | None:
    waiting = jobs.get_job(resources, OPERATOR, job_id).waiting
    return waiting and waiting.message


def test_the_reason_to_wait_vanishes_as_soon_as_a_worker_registers(resources: Resources) -> None:
    job = enqueue(resources, device="gpu", gib=40)
    assert reason(resources, job.id) == "waiting: no worker is registered"
    register(resources, "small", CPU, gpu(24))
    assert reason(resources, job.id) == "waiting: no worker with a GPU of ≥ 40 GiB"
    register(resources, "large", gpu(80))
    assert reason(resources, job.id) is None
    miss_heartbeats(resources, "large")
    assert reason(resources, job.id) == "waiting: no worker with a GPU of ≥ 40 GiB"
    register(resources, "large", gpu(80))
    assert reason(resources, job.id) is None
    fleet.unregister(resources, "large")
    assert reason(resources, job.id) is not None


def test_a_worker_that_misses_heartbeats_is_silent_before_it_expires(
    resources: Resources,
) -> None:
    register(resources, "healthy", CPU)
    register(resources, "late", CPU)
    # Of six heartbeats more than two are missing.
    later = "UPDATE workers SET seen_at = seen_at - (expires_at - seen_at) WHERE id = 'late'"
    with resources.database.transaction() as transaction:
        transaction.execute(text(later))
    silent = {worker.id: worker.silent for worker in service_status(resources, OPERATOR).fleet}
    assert silent == {"healthy": False, "late": True}
    register(resources, "late", CPU)
    assert not any(worker.silent for worker in service_status(resources, OPERATOR).fleet)


def test_only_queued_jobs_have_a_reason_to_wait(resources: Resources) -> None:
    job = enqueue(resources)
    assert jobs.get_job(resources, OPERATOR, job.id).waiting is not None
    claimed = claims.claim_next_job(resources, "earlier")
    assert claimed is not None
    assert claimed.waiting is None
    paused = jobs.pause_job(resources, OPERATOR, job.id)
    assert paused.waiting is None
    assert claims.finish_pause(resources, claimed.lease).waiting is None
    assert jobs.resume_job(resources, OPERATOR, job.id).waiting is not None


def test_a_job_that_no_worker_can_run_does_not_hold_up_those_behind_it(
    resources: Resources,
) -> None:
    enqueue(resources, device="gpu", gib=60, priority=9)
    behind = enqueue(resources, device="gpu", gib=10, priority=0)
    claimed = claims.claim_next_job(resources, "worker", free_slot(24))
    assert claimed is not None
    assert claimed.id == behind.id
    assert claims.claim_next_job(resources, "worker", free_slot(24)) is None


def test_a_gpu_claims_neither_what_exceeds_its_memory_nor_a_dtype_that_it_lacks(
    resources: Resources,
) -> None:
    large = enqueue(resources, device="gpu", gib=40)
    bfloat16 = enqueue(resources, device="gpu", dtype="bfloat16")
    old = free_slot(24, bfloat16=False)
    assert claims.claim_next_job(resources, "worker", old) is None
    assert claims.claim_next_job(resources, "worker", CPU_SLOT) is None
    taken = [claims.claim_next_job(resources, "worker", free_slot(40)) for _ in range(2)]
    assert [job and job.id for job in taken] == [large.id, bfloat16.id]


def test_a_job_on_auto_leaves_a_gpu_that_is_too_small_to_a_better_device(
    resources: Resources,
) -> None:
    job = enqueue(resources, gib=40)
    register(resources, "small", gpu(24))
    register(resources, "large", gpu(80))
    assert claims.claim_next_job(resources, "small", free_slot(24)) is None
    fleet.unregister(resources, "large")
    claimed = claims.claim_next_job(resources, "small", free_slot(24))
    assert claimed is not None
    assert claimed.id == job.id, "no better device is left"


def test_a_gpu_is_not_taken_by_a_job_on_cpu_while_there_is_a_worker_without_gpus(
    resources: Resources,
) -> None:
    job = enqueue(resources, device="cpu")
    register(resources, "cpu", CPU)
    register(resources, "gpu", gpu(24))
    assert claims.claim_next_job(resources, "gpu", free_slot(24)) is None
    fleet.unregister(resources, "cpu")
    claimed = claims.claim_next_job(resources, "gpu", free_slot(24))
    assert claimed is not None
    assert claimed.id == job.id


def test_a_worker_claims_no_job_that_exceeds_its_host(resources: Resources) -> None:
    large = enqueue(resources, device="cpu", host_gib=33)
    behind = enqueue(resources, host_gib=32)
    small = slots(cpu(32))[0]
    assert taken(resources, "small", small) == behind.id
    assert taken(resources, "small", small) is None
    register(resources, "small", cpu(32))
    assert reason(resources, large.id) == "waiting: no worker with ≥ 33 GiB of memory"
    register(resources, "large", cpu(64))
    assert reason(resources, large.id) is None
    assert taken(resources, "large", slots(cpu(64))[0]) == large.id


def test_jobs_that_share_a_host_share_its_memory(resources: Resources) -> None:
    host = slots(cpu(64, jobs_at_once=3))[0]
    first, large, behind = (enqueue(resources, host_gib=size) for size in (30, 40, 20))
    assert taken(resources, "worker", host) == first.id
    assert taken(resources, "worker", host) is None, "smaller jobs would always come first"
    elsewhere = slots(cpu(64))[0]
    assert taken(resources, "other", elsewhere) == large.id, "it has a host of its own"
    assert taken(resources, "worker", host) == behind.id
    fourth = enqueue(resources, host_gib=40)
    assert taken(resources, "worker", host) is None
    assert reason(resources, fourth.id) == "waiting: no worker is registered"
    running = jobs.get_job(resources, OPERATOR, first.id)
    claims.fail_job(resources, running.lease, JobError(code="numerical", message="NaN"))
    assert taken(resources, "worker", host) == fourth.id


def taken(resources: Resources, owner: str, slot: Slot) -> str | None:
    """Return the job that a worker claims for a slot."""
    claimed = claims.claim_next_job(resources, owner, FreeSlots.of(slot))
    return claimed and claimed.id


def test_claims_of_one_worker_do_not_count_the_same_memory_twice(resources: Resources) -> None:
    host = slots(cpu(64, jobs_at_once=8))[0]
    for _ in range(8):
        enqueue(resources, host_gib=30)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: taken(resources, "worker", host), range(8)))
    assert len([job for job in results if job is not None]) == 2


def test_the_host_of_gpus_has_the_memory_of_the_jobs_on_its_cpu(resources: Resources) -> None:
    devices = (gpu(24), gpu(24), gpu(24))
    register(resources, "worker", *devices)
    on_gpu = enqueue(resources, gib=10, host_gib=100)
    on_host = enqueue(resources, device="cpu", host_gib=100)
    beside = enqueue(resources, device="cpu", host_gib=30)
    larger = enqueue(resources, device="cpu", host_gib=129)
    first, second, third = slots(*devices)
    assert taken(resources, "unregistered", first) == on_gpu.id
    assert taken(resources, "unregistered", second) is None, "the memory of its host is unknown"
    unlike = enqueue(resources, gib=10, host_gib=100)
    assert taken(resources, "worker", first) == on_host.id
    assert taken(resources, "worker", second) == unlike.id, "it needs no memory of the host"
    assert taken(resources, "worker", third) is None
    smaller = enqueue(resources, device="cpu", host_gib=28)
    assert taken(resources, "worker", third) == smaller.id
    assert reason(resources, beside.id) is None
    assert reason(resources, larger.id) == "waiting: no worker with ≥ 129 GiB of memory"


def test_a_gpu_takes_jobs_of_the_cpu_that_are_too_large_for_the_workers_without_gpus(
    resources: Resources,
) -> None:
    enqueue(resources, device="cpu", host_gib=20)
    large = enqueue(resources, device="cpu", host_gib=40)
    register(resources, "cpu", cpu(32))
    register(resources, "gpu", gpu(24))
    assert taken(resources, "gpu", slots(gpu(24))[0]) == large.id
    assert taken(resources, "gpu", slots(gpu(24))[0]) is None


def test_free_slots_may_be_unable_to_run_what_others_can_unless_all_workers_are_alike(
    resources: Resources,
) -> None:
    register(resources, "a", cpu(64))
    register(resources, "b", cpu(64))
    assert not fleet.is_selective(resources)
    register(resources, "b", cpu(32))
    assert fleet.is_selective(resources)
    register(resources, "b", cpu(64, jobs_at_once=2))
    assert fleet.is_selective(resources)
    register(resources, "b", gpu(8))
    assert fleet.is_selective(resources)


def test_workers_of_earlier_releases_claim_any_job_without_a_registration(
    resources: Resources,
) -> None:
    job = enqueue(resources, gib=400, host_gib=400)
    claimed = claims.claim_next_job(resources, "earlier")
    assert claimed is not None
    assert claimed.id == job.id


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_jobs_admitted_before_the_migration_run_on_any_gpu(
    resources: Resources, device: str
) -> None:
    job = enqueue(resources, device=device)
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET compression = compression - 'dtype'"))
    assert claims.claim_next_job(resources, "cpu", CPU_SLOT) is None
    claimed = claims.claim_next_job(resources, "gpu", free_slot(8))
    assert claimed is not None
    assert claimed.id == job.id


def test_a_job_moves_to_a_larger_gpu_after_one_was_too_small(resources: Resources) -> None:
    enqueue(resources, device="gpu", gib=10)
    first = claims.claim_next_job(resources, "small", free_slot(24))
    assert first is not None
    claims.requeue_job(resources, first.lease, None, gpu_bytes=24 * GIB + 1)
    assert claims.claim_next_job(resources, "small", free_slot(24)) is None
    again = claims.claim_next_job(resources, "large", free_slot(80))
    assert again is not None
    assert again.gpu_bytes == 24 * GIB + 1


def registered(resources: Resources) -> list[str]:
    with resources.database.transaction() as transaction:
        return list(transaction.execute(text("SELECT id FROM workers")).scalars())


def test_silent_workers_are_removed_and_live_ones_stay(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "OUTAGES", Outages())
    register(resources, "live", CPU)
    register(resources, "silent", CPU)
    miss_heartbeats(resources, "silent")
    fleet.remove_silent(resources)
    assert registered(resources) == ["live"]


def test_no_worker_is_removed_until_it_had_the_time_to_renew_after_an_outage(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    outages = Outages(lambda: now[0])
    monkeypatch.setattr(fleet, "OUTAGES", outages)
    register(resources, "worker", CPU)
    miss_heartbeats(resources, "worker")
    outages.note_failure(DATABASE, "refused")
    fleet.remove_silent(resources)
    outages.note_success(DATABASE)
    now[0] += fleet.expiry_seconds(resources) - 0.1
    fleet.remove_silent(resources)
    assert registered(resources) == ["worker"]
    now[0] += 0.2
    fleet.remove_silent(resources)
    assert registered(resources) == []


def test_a_heartbeat_keeps_the_start_and_moves_the_end(resources: Resources) -> None:
    def times() -> tuple[object, bool]:
        query = "SELECT started_at, expires_at > now() FROM workers"
        with resources.database.transaction() as transaction:
            started, live = transaction.execute(text(query)).one()
        return started, live

    register(resources, "worker", CPU)
    started, _ = times()
    miss_heartbeats(resources, "worker")
    assert times() == (started, False)
    register(resources, "worker", CPU)
    assert times() == (started, True)


def test_watchers_are_notified_when_the_fleet_changes(resources: Resources) -> None:
    job = enqueue(resources, device="gpu", gib=40)

    async def follow() -> list[str | None]:
        seen: list[str | None] = []
        async with Watching(resources) as watching:
            while not watching.hearing:
                await asyncio.sleep(0.01)
            async with watching.watch(OPERATOR, job.id, log=False) as watched:
                for change in (
                    lambda: register(resources, "small", gpu(24)),
                    lambda: register(resources, "large", gpu(80)),
                    lambda: fleet.unregister(resources, "large"),
                ):
                    version = watched.version
                    await asyncio.to_thread(change)
                    await asyncio.wait_for(watched.changed_since(version), 10)
                    waiting = watched.job.waiting
                    seen.append(waiting and waiting.code)
        return seen

    assert asyncio.run(follow()) == [WaitingCode.GPU_MEMORY, None, WaitingCode.GPU_MEMORY]


def test_waiting_jobs_are_counted_by_reason(resources: Resources) -> None:
    enqueue(resources, device="gpu", gib=40)
    enqueue(resources, device="cuda:1", gib=60)
    enqueue(resources, device="gpu", gib=10)
    enqueue(resources, gib=10, devices=2)
    enqueue(resources)
    enqueue(resources, device="cpu", host_gib=200)
    assert measure_backlog(resources).waiting == {
        WaitingCode.NO_WORKER: 6,
        WaitingCode.NO_GPU: 0,
        WaitingCode.GPU_DTYPE: 0,
        WaitingCode.GPU_MEMORY: 0,
        WaitingCode.GPU_COUNT: 0,
        WaitingCode.HOST_MEMORY: 0,
    }
    register(resources, "small", CPU, gpu(24))
    backlog = measure_backlog(resources)
    assert {code: number for code, number in backlog.waiting.items() if number} == {
        WaitingCode.GPU_MEMORY: 2,
        WaitingCode.GPU_COUNT: 1,
        WaitingCode.HOST_MEMORY: 1,
    }
    assert backlog.devices == {"cpu": 1, "gpu": 1}


def test_the_service_shows_workers_devices_and_their_jobs(
    client: TestClient, resources: Resources
) -> None:
    job = enqueue(resources, device="gpu", gib=10)
    register(resources, "worker", gpu(24), gpu(80))
    first, second = slots(gpu(24), gpu(80))
    claimed = claims.claim_next_job(resources, "worker", FreeSlots.of(second))
    assert claimed is not None
    assert claims.claim_next_job(resources, "worker", FreeSlots.of(first)) is None
    progress = Progress(
        fraction=0.1, message="reading", memory_bytes=3 * GIB, gpu_memory_bytes=9 * GIB
    )
    claims.record_progress(resources, claimed.lease, Stage.LOAD, progress, log=False)
    status = client.get("/v1/service").json()
    (worker,) = status["fleet"]
    assert (worker["id"], worker["host_memory_bytes"]) == ("worker", HOST_BYTES)
    idle, busy = worker["devices"]
    assert (idle["kind"], idle["memory_bytes"], idle["jobs"]) == ("gpu", 24 * GIB, [])
    assert busy["dtypes"] == ["float32", "bfloat16", "float16"]
    (running,) = busy["jobs"]
    assert (running["job_id"], running["state"]) == (job.id, State.RUNNING)
    assert (running["memory_bytes"], running["gpu_memory_bytes"]) == (3 * GIB, 9 * GIB)
    assert (status["workers"], status["busy_workers"]) == (1, 1)
    fleet.unregister(resources, "worker")
    assert client.get("/v1/service").json()["fleet"] == []


def test_a_job_on_several_gpus_is_claimed_once_enough_are_free_and_shown_on_each(
    client: TestClient, resources: Resources
) -> None:
    job = enqueue(resources, gib=10, devices=2)
    behind = enqueue(resources, device="gpu", gib=10)
    register(resources, "worker", CPU, gpu(24), gpu(24), gpu(80))
    cpu, first, second, large = slots(CPU, gpu(24), gpu(24), gpu(80))
    assert claims.claim_next_job(resources, "worker", FreeSlots.of(cpu)) is None
    assert claims.claim_next_job(resources, "worker", FreeSlots(slots=(second,), total=2)) is None
    other = claims.claim_next_job(resources, "worker", FreeSlots.of(large))
    assert other is not None
    assert other.id == behind.id, "a kind of device that has too few does not wait"
    claimed = claims.claim_next_job(resources, "worker", FreeSlots.of(first, second))
    assert claimed is not None
    assert claimed.id == job.id
    progress = Progress(fraction=0.1, message="reading", memory_bytes=3 * GIB)
    claims.record_progress(resources, claimed.lease, Stage.LOAD, progress, log=False)
    (worker,) = client.get("/v1/service").json()["fleet"]
    running = [[run["job_id"] for run in device["jobs"]] for device in worker["devices"]]
    assert running == [[], [job.id], [job.id], [behind.id]]
    held = [[run["memory_bytes"] for run in device["jobs"]] for device in worker["devices"]]
    assert held == [[], [3 * GIB], [None], [None]], "memory of the host is shown once"
    claims.requeue_job(resources, claimed.lease, None)
    again = claims.claim_next_job(resources, "worker-2", FreeSlots.of(*slots(*[gpu(40)] * 3)))
    assert again is not None
    assert again.id == job.id


def test_jobs_of_other_projects_are_shown_without_details(
    closed: TestClient, resources: Resources
) -> None:
    enqueue(resources)
    register(resources, "worker", CPU)
    assert claims.claim_next_job(resources, "worker", CPU_SLOT) is not None
    reader = key_of(resources, Scope.READ, "other").secret
    status = closed.get("/v1/service", headers={"authorization": f"Bearer {reader}"}).json()
    assert status["fleet"][0]["devices"][0]["jobs"] == [
        {
            "job_id": None,
            "state": "running",
            "stage": None,
            "fraction": None,
            "memory_bytes": None,
            "gpu_memory_bytes": None,
            "claimed_at": None,
        }
    ]
