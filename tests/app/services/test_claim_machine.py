"""Random fleets and queues: every claim takes the first job that the device can run.

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

from app.domain.job import JobError, JobRecord
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import GIB, Device, Slot
from app.services import claims, fleet, jobs
from app.services.resources import Resources
from tests.app.fleets import CPU, enqueue, gpu, miss_heartbeats, register, slots

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
ERROR = JobError(code="numerical", message="NaN")
WORKERS = st.sampled_from(["a", "b", "c"])
DEVICES = st.one_of(
    st.just(CPU),
    st.builds(gpu, st.sampled_from([10, 20, 40]), bfloat16=st.booleans()),
)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A queued job as the oracle knows it."""

    id: str
    device: str
    dtype: str
    gib: int
    priority: int


def fits(device: Device, job: Queued) -> bool:
    if device.kind == "cpu" or device.memory_bytes < job.gib * GIB:
        return False
    return job.dtype == "auto" or job.dtype in device.dtypes


def can_run(device: Device, job: Queued, live: list[Device]) -> bool:
    if job.device not in ("auto", "cpu"):
        return fits(device, job)
    if device.kind == "cpu" or (job.device == "auto" and fits(device, job)):
        return True
    if any(other.kind == "cpu" for other in live):
        return False
    return job.device == "cpu" or not any(fits(other, job) for other in live)


class Fleet(RuleBasedStateMachine):
    """Up to three workers of one device each, and a queue."""

    resources: ClassVar[Resources]

    @initialize()
    def start(self) -> None:
        self.queue: dict[str, Queued] = {}
        self.devices: dict[str, Device] = {"a": CPU, "b": gpu(20), "c": gpu(40)}
        self.live: set[str] = set()

    @property
    def live_devices(self) -> list[Device]:
        return [self.devices[name] for name in sorted(self.live)]

    @rule(name=WORKERS, device=DEVICES)
    def worker_starts(self, name: str, device: Device) -> None:
        if name not in self.live:
            self.devices[name] = device
        register(self.resources, name, self.devices[name])
        self.live.add(name)

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
        gib=st.sampled_from([None, 5, 20, 30, 60]),
        priority=st.integers(0, 2),
    )
    def job_is_submitted(self, device: str, dtype: str, gib: int | None, priority: int) -> None:
        job = enqueue(self.resources, device=device, dtype=dtype, gib=gib, priority=priority)
        self.queue[job.id] = Queued(
            id=job.id, device=device, dtype=dtype, gib=gib or 0, priority=priority
        )

    @rule(name=WORKERS)
    def worker_claims(self, name: str) -> None:
        device = self.devices[name]
        (slot,) = slots(device)
        possible = [job for job in self.queue.values() if self.runs(device, job)]
        self.claim_first_of(possible, name, slot)

    def runs(self, device: Device, job: Queued) -> bool:
        return can_run(device, job, self.live_devices)

    @rule()
    def worker_of_an_earlier_release_claims(self) -> None:
        self.claim_first_of(list(self.queue.values()), "earlier", None)

    def claim_first_of(self, possible: list[Queued], owner: str, slot: Slot | None) -> None:
        expected = min(possible, key=lambda job: (-job.priority, job.id), default=None)
        claimed = claims.claim_next_job(self.resources, owner, slot)
        assert (claimed and claimed.id) == (expected and expected.id)
        if claimed is not None:
            del self.queue[claimed.id]
            assert claims.fail_job(self.resources, claimed.lease, ERROR).state is State.FAILED

    @invariant()
    def a_job_waits_exactly_if_no_live_worker_can_run_it(self) -> None:
        for job in self.queue.values():
            stored: JobRecord = jobs.get_job(self.resources, OPERATOR, job.id)
            possible = any(self.runs(device, job) for device in self.live_devices)
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
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
