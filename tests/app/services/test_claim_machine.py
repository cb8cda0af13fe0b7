"""Random fleets and queues: every claim takes the first job that the worker's devices can run.

The test compares the claims of the real database with a naive search of all queued jobs, and the
reasons to wait with the devices of the workers that are live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from app.domain.job import JobError, JobRecord, Lease
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import GIB, Device, FreeSlots
from app.services import claims, fleet, jobs
from app.services.resources import Resources
from tests.app.fleets import HOST_BYTES, cpu, enqueue, gpu, miss_heartbeats, register, slots

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
ERROR = JobError(code="numerical", message="NaN")
WORKERS = st.sampled_from(["a", "b", "c"])
DEVICES = st.one_of(
    st.builds(cpu, st.sampled_from([32, 64]), jobs_at_once=st.sampled_from([1, 3])),
    st.builds(gpu, st.sampled_from([10, 20, 40]), bfloat16=st.booleans()),
)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A queued job as the oracle knows it."""

    id: str
    device: str
    dtype: str
    gib: int
    host_gib: int
    priority: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running job as the oracle knows it."""

    owner: str
    job: Queued
    lease: Lease


def urgency(job: Queued) -> tuple[int, str]:
    """Return the position of a job in the queue."""
    return -job.priority, job.id


def fits(device: Device, job: Queued) -> bool:
    if device.kind == "cpu" or device.memory_bytes < job.gib * GIB:
        return False
    return job.dtype == "auto" or job.dtype in device.dtypes


def host_gib(device: Device) -> int:
    """Return the memory of the host of a worker with this device."""
    return (device.memory_bytes if device.kind == "cpu" else HOST_BYTES) // GIB


def can_run(device: Device, count: int, job: Queued, live: list[Device], free_gib: int) -> bool:
    """Return whether a worker with a number of equal devices, all of them free, runs a job."""
    if job.devices > 1:
        return fits(device, job) and count >= job.devices
    if job.device not in ("auto", "cpu"):
        return fits(device, job)
    if job.device == "auto" and fits(device, job):
        return True
    if job.host_gib > free_gib:
        return False
    if device.kind == "cpu":
        return True
    if any(other.kind == "cpu" and job.host_gib <= host_gib(other) for other in live):
        return False
    return job.device == "cpu" or not any(fits(other, job) for other in live)


class Fleet(RuleBasedStateMachine):
    """Up to three workers of some equal devices each, and a queue."""

    resources: ClassVar[Resources]

    @initialize(hosts=st.lists(st.sampled_from([33, 40]), max_size=3))
    def start(self, hosts: list[int]) -> None:
        self.queue: dict[str, Queued] = {}
        self.devices: dict[str, Device] = {
            "a": cpu(64, jobs_at_once=3),
            "b": gpu(20),
            "c": gpu(40),
        }
        self.counts = {"a": 1, "b": 1, "c": 2}
        self.live: set[str] = set()
        self.running: list[Running] = []
        for host in hosts:
            job = enqueue(self.resources, device="cpu", host_gib=host, priority=1)
            queued = {"device": "cpu", "dtype": "auto", "gib": 0, "priority": 1, "devices": 1}
            self.queue[job.id] = Queued(id=job.id, host_gib=host, **queued)

    @property
    def live_devices(self) -> list[Device]:
        return [self.devices[name] for name in sorted(self.live)]

    def free_gib(self, name: str) -> int:
        """Return the host memory that the running jobs of a worker leave."""
        device = self.devices[name]
        if device.kind == "gpu" and name not in self.live:
            return 0  # nothing is known of its host
        if device.kind == "cpu" and device.jobs_at_once == 1:
            return host_gib(device)
        own = [running.job for running in self.running if running.owner == name]
        on_host = [job for job in own if job.device == "cpu" or not fits(device, job)]
        return host_gib(device) - sum(job.host_gib for job in on_host)

    @rule(name=WORKERS, device=DEVICES, count=st.integers(1, 3))
    def worker_starts(self, name: str, device: Device, count: int) -> None:
        if name not in self.live:
            self.devices[name] = device
            self.counts[name] = count if device.kind == "gpu" else 1
        register(self.resources, name, *self.devices_of(name))
        self.live.add(name)

    def devices_of(self, name: str) -> list[Device]:
        return [self.devices[name]] * self.counts[name]

    @rule(name=WORKERS, removed=st.booleans())
    def worker_goes_silent(self, name: str, removed: bool) -> None:
        miss_heartbeats(self.resources, name)
        self.live.discard(name)
        if removed:
            fleet.remove_silent(self.resources)

    @rule(name=WORKERS)
    def worker_stops(self, name: str) -> None:
        fleet.unregister(self.resources, name)
        self.live.discard(name)

    @rule(
        device=st.sampled_from(["auto", "cpu", "gpu", "cuda", "cuda:1"]),
        dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
        gib=st.sampled_from([None, 20, 21, 60]),
        host=st.sampled_from([None, 20, 32, 33, 200]),
        priority=st.integers(0, 2),
        devices=st.sampled_from([1, 1, 2, 3]),
    )
    def job_is_submitted(
        self,
        device: str,
        dtype: str,
        gib: int | None,
        host: int | None,
        priority: int,
        devices: int,
    ) -> None:
        if device in ("cpu", "cuda:1"):
            devices = 1  # the API rejects others
        settings = {"device": device, "dtype": dtype, "priority": priority, "devices": devices}
        job = enqueue(self.resources, gib=gib, host_gib=host, **settings)
        self.queue[job.id] = Queued(id=job.id, gib=gib or 0, host_gib=host or 0, **settings)

    @rule(name=WORKERS, count=st.integers(1, 3), ends=st.sampled_from([False, False, True]))
    def worker_claims(self, name: str, count: int, ends: bool) -> None:
        device, room = self.devices[name], self.free_gib(name)
        every = slots(*self.devices_of(name))
        free = FreeSlots(slots=every[:count], total=len(every))
        # On a CPU a job that has no room yet holds up those behind it.
        memory = host_gib(device) if device.kind == "cpu" else room
        possible = [job for job in self.queue.values() if self.runs(name, job, memory)]
        first = min(possible, key=urgency, default=None)
        if first is not None and device.kind == "cpu" and first.host_gib > room:
            possible = []
        self.claim_first_of(possible, name, free, ends=ends)

    def runs(self, name: str, job: Queued, host: int) -> bool:
        return can_run(self.devices[name], self.counts[name], job, self.live_devices, host)

    @rule(name=WORKERS)
    def job_ends(self, name: str) -> None:
        running = next((each for each in self.running if each.owner == name), None)
        if running is not None:
            self.running.remove(running)
            claims.fail_job(self.resources, running.lease, ERROR)

    @rule()
    def worker_of_an_earlier_release_claims(self) -> None:
        self.claim_first_of(list(self.queue.values()), "earlier", None, ends=True)

    def claim_first_of(
        self, possible: list[Queued], owner: str, free: FreeSlots | None, *, ends: bool
    ) -> None:
        expected = min(possible, key=urgency, default=None)
        if expected is not None and free is not None and expected.devices > len(free.slots):
            expected = None  # it waits for more free devices, and nothing comes before it
        claimed = claims.claim_next_job(self.resources, owner, free)
        assert (claimed and claimed.id) == (expected and expected.id)
        if claimed is None:
            return
        job = self.queue.pop(claimed.id)
        if ends:
            assert claims.fail_job(self.resources, claimed.lease, ERROR).state is State.FAILED
        else:
            self.running.append(Running(owner=owner, job=job, lease=claimed.lease))

    @invariant()
    def a_job_waits_exactly_if_no_live_worker_can_run_it(self) -> None:
        for job in self.queue.values():
            stored: JobRecord = jobs.get_job(self.resources, OPERATOR, job.id)
            possible = any(self.runs(name, job, host_gib(self.devices[name])) for name in self.live)
            assert (stored.waiting is None) == possible, (job, stored.waiting)

    def teardown(self) -> None:
        with self.resources.database.transaction() as transaction:
            transaction.execute(text("DELETE FROM jobs"))
            transaction.execute(text("DELETE FROM workers"))


def test_claims_equal_a_search_of_the_whole_queue(resources: Resources) -> None:
    Fleet.resources = resources
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=45,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
