"""A worker runs as many jobs at once as it may, with hints and without, on one device or more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from app.domain.job import JobRecord
from app.domain.worker import Device, FreeSlots, Slot
from app.services import claims, generation_claims
from app.services.generation_claims import ClaimedGeneration
from app.services.resources import Resources
from app.telemetry.outages import BROKER, Outages
from tests.app.builders import queued, succeeded
from tests.app.fleets import cpu, enqueue, gpu, register, slots
from tests.app.generating import prompted
from workers import job_slots
from workers.devices import cpu_slots
from workers.job_slots import JobSlots

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


class Engine:
    """Runs jobs and prompts until it is told to end one, with the service's own claims."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.running = self.most = 0
        self.devices: dict[str, Device] = {}
        """Device of every job and prompt that was started."""
        self.gives_way: dict[str, bool] = {}
        """True for a prompt at whose end a job waited for its slot."""
        self.numbers: dict[str, list[int]] = {}
        """Numbers of the devices of every job and prompt."""
        self.busy: set[int] = set()
        self.shared: set[int] = set()
        """Numbers of devices on which something was started while something else ran there."""
        self._lock = threading.Lock()

    def run_job(
        self,
        resources: Resources,
        job: JobRecord,
        _stopping: threading.Event,
        slots: tuple[Slot, ...],
    ) -> JobRecord:
        with self._occupied(job.id, slots):
            return succeeded(resources, job)

    def run_generation(
        self,
        resources: Resources,
        claimed: ClaimedGeneration,
        _stopping: threading.Event,
        slots: FreeSlots,
    ) -> None:
        with self._occupied(claimed.generation.id, slots.slots):
            claim = claimed.generation.claim
            self.gives_way[claim.generation_id] = generation_claims.renew(resources, claim, slots)
            generation_claims.succeed(resources, claim)

    @contextmanager
    def _occupied(self, work: str, slots: Sequence[Slot]) -> Iterator[None]:
        """Occupy slots until the work may end, and then until its end is recorded."""
        numbers = [slot.number for slot in slots]
        with self._lock:
            self.devices[work] = slots[0].device
            self.numbers[work] = numbers
            self.shared |= self.busy & set(numbers)
            self.busy |= set(numbers)
            self.running += 1
            self.most = max(self.most, self.running)
        self.started.release()
        assert self.may_end.acquire(timeout=30)
        with self._lock:
            self.running -= 1
            self.busy -= set(numbers)
        yield


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(job_slots, "run_job", made.run_job)
    monkeypatch.setattr(job_slots, "run_generation", made.run_generation)
    return made


def slots_of(resources: Resources, concurrency: int, stopping: threading.Event) -> JobSlots:
    return JobSlots(resources, "worker-1", stopping, cpu_slots(concurrency))


@pytest.mark.parametrize("concurrency", [1, 2])
def test_no_more_jobs_run_at_once_than_allowed_and_none_is_left(
    resources: Resources, engine: Engine, concurrency: int
) -> None:
    for _ in range(4):
        queued(resources)
    slots = slots_of(resources, concurrency, threading.Event())
    busy = [threading.Thread(target=slots.run_queued) for _ in range(concurrency)]
    for thread in busy:
        thread.start()
        assert engine.started.acquire(timeout=30)
    assert slots.run_queued() == 0, "every slot is busy"
    for _ in range(4):
        engine.may_end.release()
    for thread in busy:
        thread.join(30)
    assert engine.most == concurrency
    assert claims.claim_next_job(resources, "worker-2") is None
    engine.may_end.release()
    queued(resources)
    assert slots.run_queued() == 1, "the slot is free again"


def test_a_stopping_worker_starts_no_job(resources: Resources, engine: Engine) -> None:
    queued(resources)
    stopping = threading.Event()
    stopping.set()
    assert slots_of(resources, 1, stopping).run_queued() == 0
    assert engine.most == 0


def test_jobs_are_looked_for_only_while_the_broker_is_away(
    resources: Resources, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = Outages()
    monkeypatch.setattr(job_slots, "OUTAGES", present)
    queued(resources)
    slots = slots_of(resources, 1, threading.Event())
    assert slots.run_without_hints(resources) == 0
    present.note_failure(BROKER, "connection refused")
    engine.may_end.release()
    assert slots.run_without_hints(resources) == 1
    queued(resources)
    present.note_success(BROKER)
    assert slots.run_without_hints(resources) == 0


def test_a_worker_with_gpus_looks_for_jobs_whose_hints_went_elsewhere(
    resources: Resources, engine: Engine
) -> None:
    job = enqueue(resources, device="gpu", gib=40)
    looking = JobSlots(resources, "worker-1", threading.Event(), slots(gpu(80)))
    assert looking.run_without_hints(resources) == 0, "it has not registered its GPU"
    register(resources, "worker-1", gpu(80))
    engine.may_end.release()
    assert looking.run_without_hints(resources) == 1
    assert engine.devices == {job.id: gpu(80)}


def test_each_device_of_a_worker_looks_for_jobs(resources: Resources, engine: Engine) -> None:
    large = enqueue(resources, device="gpu", gib=40)
    small = enqueue(resources, device="gpu", gib=10)
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(gpu(24), gpu(80)))
    for _ in range(2):
        engine.may_end.release()
    assert fleet.run_queued() == 2
    assert engine.devices == {small.id: gpu(24), large.id: gpu(80)}


def test_every_gpu_runs_one_job_at_a_time(resources: Resources, engine: Engine) -> None:
    jobs = [enqueue(resources, device="gpu", gib=10) for _ in range(3)]
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(gpu(24), gpu(80)))
    busy = [threading.Thread(target=fleet.run_queued) for _ in range(2)]
    for thread in busy:
        thread.start()
        assert engine.started.acquire(timeout=30)
    assert fleet.run_queued() == 0, "both are busy"
    assert {engine.devices[job.id].name for job in jobs[:2]} == {"GPU 24", "GPU 80"}
    for _ in jobs:
        engine.may_end.release()
    for thread in busy:
        thread.join(30)
    assert engine.most == 2
    assert engine.devices.keys() == {job.id for job in jobs}


def test_a_slot_waits_until_the_jobs_of_others_leave_the_memory_of_the_host(
    resources: Resources, engine: Engine
) -> None:
    jobs = [enqueue(resources, host_gib=40) for _ in range(2)]
    slot = Slot(number=0, device=cpu(64, jobs_at_once=2))
    both = JobSlots(resources, "worker-1", threading.Event(), [slot, slot])
    busy = threading.Thread(target=both.run_queued)
    busy.start()
    assert engine.started.acquire(timeout=30)
    assert both.run_queued() == 0, "24 GiB are free"
    for _ in jobs:
        engine.may_end.release()
    busy.join(30)
    assert engine.most == 1
    assert engine.devices.keys() == {job.id for job in jobs}


def test_a_job_on_several_gpus_runs_once_enough_are_free_and_before_those_behind_it(
    resources: Resources, engine: Engine
) -> None:
    first = enqueue(resources, device="gpu", gib=10)
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(*[gpu(24)] * 2))
    busy = threading.Thread(target=fleet.run_queued)
    busy.start()
    assert engine.started.acquire(timeout=30)
    pair = enqueue(resources, gib=10, devices=2)
    behind = enqueue(resources, device="gpu", gib=10)
    assert fleet.run_queued() == 0, "the free GPU waits for the other one"
    engine.may_end.release()
    assert engine.started.acquire(timeout=30)
    assert engine.numbers == {first.id: [0], pair.id: [0, 1]}
    assert fleet.run_queued() == 0, "both are busy"
    for _ in range(2):
        engine.may_end.release()
    busy.join(30)
    assert engine.numbers[behind.id] == [0]
    assert engine.most == 1


def test_a_job_for_more_gpus_than_a_worker_has_holds_up_nothing(
    resources: Resources, engine: Engine
) -> None:
    enqueue(resources, gib=10, devices=3)
    behind = enqueue(resources, device="gpu", gib=10)
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(*[gpu(24)] * 2, gpu(80)))
    engine.may_end.release()
    assert fleet.run_queued() == 1
    assert list(engine.devices) == [behind.id]


def test_a_prompt_and_a_job_on_several_gpus_never_have_one_of_them_at_once(
    resources: Resources, engine: Engine
) -> None:
    first = prompted(resources)
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(*[gpu(24)] * 2))
    busy = threading.Thread(target=fleet.run_queued)
    busy.start()
    assert engine.started.acquire(timeout=30)
    pair = enqueue(resources, gib=10, devices=2)
    second = prompted(resources)
    assert fleet.run_queued() == 0, "the free GPU waits for that of the prompt"
    time.sleep(2 * resources.settings.heartbeat_seconds)
    for _ in range(2):
        engine.may_end.release()
        assert engine.started.acquire(timeout=30)
        assert fleet.run_queued() == 0, "both GPUs are the job's, or nothing is left"
    engine.may_end.release()
    busy.join(30)
    assert engine.numbers == {first.id: [0], pair.id: [0, 1], second.id: [0]}
    assert engine.gives_way == {first.id: True, second.id: False}
    assert engine.shared == set()


def test_a_prompt_does_not_wait_for_a_job_that_needs_more_gpus_than_there_are(
    resources: Resources, engine: Engine
) -> None:
    enqueue(resources, gib=10, devices=3)
    prompt = prompted(resources)
    fleet = JobSlots(resources, "worker-1", threading.Event(), slots(*[gpu(24)] * 2))
    engine.may_end.release()
    assert fleet.run_queued() == 1
    assert engine.numbers == {prompt.id: [0]}


def test_a_job_that_crashes_frees_its_slot(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(job_slots, "run_job", crash)
    slots = slots_of(resources, 1, threading.Event())
    for _ in range(2):
        queued(resources)
        with pytest.raises(ZeroDivisionError):
            slots.run_queued()
