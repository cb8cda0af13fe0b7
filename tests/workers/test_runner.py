"""One job from claim to end, with a fake child and real servers."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from app.adapters.database import engine, job_changes, leases, past_runs
from app.adapters.database.migrate import upgrade
from app.domain.artifact import job_prefix
from app.domain.errors import StoreUnavailableError
from app.domain.job import Job, Progress
from app.domain.job_log import LogLevel
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.worker import GIB, Device, Slot
from app.embedded.postgres import EmbeddedPostgres
from app.services import claims, estimates, job_log, jobs, layer_files, publication
from app.services.resources import Resources, open_resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig
from intraslice_core.progress import ProgressEvent, Stage
from tests.app.builders import claim_job, in_state, queued, running, succeeded, weights_on_disk
from tests.app.fleets import cpu, enqueue, gpu, register, slots
from tests.workers.running import run_next_job
from workers import progress_journal, runner
from workers.child_process import ChildProcess, kill_all_children
from workers.messages import ChildRequest
from workers.periodic_tasks import DEPLOYMENT_TASKS, MaintenanceThread
from workers.runner import StartChild, remove_stale_work

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
REPOSITORY = Path(__file__).parents[2]


def child(behaviour: str) -> StartChild:
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r});"
    script += "import runpy; runpy.run_module('tests.workers.fake_child', run_name='__main__')"

    def start(request: ChildRequest, log: Path) -> ChildProcess:
        return ChildProcess(request, log, (sys.executable, "-P", "-c", script, behaviour))

    return start


def run(resources: Resources, behaviour: str) -> Job | None:
    return run_next_job(resources, "worker-1", threading.Event(), child(behaviour))


def assert_nothing_is_left(resources: Resources, job: Job) -> None:
    assert resources.store.keys(job_prefix(job)) == []
    assert jobs.list_artifacts(resources, OPERATOR, job.id) == []
    assert list(resources.work_dir.glob("*")) == []


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def child_pid(resources: Resources) -> int | None:
    for file in resources.work_dir.glob("*/pid"):
        text = file.read_text()
        return int(text) if text else None
    return None


@pytest.mark.parametrize("behaviour", ["finish", "babble"])
def test_a_finished_child_completes_the_job(resources: Resources, behaviour: str) -> None:
    queued(resources)
    job = run(resources, behaviour)
    assert job is not None
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    assert job.result.params_after == 700
    names = [file.name for file in jobs.list_artifacts(resources, OPERATOR, job.id)]
    assert names == ["config.json", "manifest.json", "model.safetensors"]
    assert len(resources.store.keys(job_prefix(job))) == 3
    assert list(resources.work_dir.glob("*")) == []
    events = jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data
    steps = [(e.data["stage"], e.data["message"]) for e in events if e.type == "progress"]
    assert steps == [
        ("load", "starting worker process"),
        ("compress", "layer 1/2"),
        ("publish", "uploading file 1/2"),
    ]
    fractions = [e.data["fraction"] for e in events if e.type == "progress"]
    assert fractions == [0.0, 0.4, 0.4], "the upload continues where the engine ended"
    stored = jobs.get_job(resources, OPERATOR, job.id)
    assert stored.progress == Progress(fraction=1.0, message="done")


def test_an_engine_error_fails_the_job_at_once(resources: Resources) -> None:
    queued(resources)
    job = run(resources, "fail")
    assert job is not None
    assert job.state is State.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.layer, job.error.module) == ("numerical", 1, "mlp")
    # Whoever reads the job does not learn the directories of the worker.
    assert job.error.message.startswith("singular in …/")
    assert str(resources.settings.data_dir) not in job.error.message
    assert not job.error.retryable
    assert_nothing_is_left(resources, job)


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("be_killed", "out_of_memory"),
        ("crash", "child_crashed"),
        ("exceed_device", "out_of_device_memory"),
    ],
)
def test_a_crashed_child_is_retried_up_to_the_last_attempt(
    resources: Resources, behaviour: str, code: str
) -> None:
    queued(resources)
    for attempt in range(1, 4):
        job = run(resources, behaviour)
        assert job is not None
        assert job.attempt == attempt
        assert job.error is not None
        assert job.error.code == code
        assert job.state is (State.QUEUED if attempt < 3 else State.FAILED)
    assert job.error.retryable
    if behaviour == "crash":
        assert "exit code 7: Segmentation something" in job.error.message
        lines = job_log.list_lines(
            resources, OPERATOR, job.id, after=0, limit=100, level=LogLevel.INFO
        ).data
        assert [(line.attempt, line.event) for line in lines] == [
            (attempt, event)
            for attempt in range(1, 4)
            for event in ("some output", "Segmentation something")
        ]
        end = jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data[-1]
        assert lines[-1].sequence < end.sequence, "the end of the job is the end of its stream"
    assert_nothing_is_left(resources, job)


@pytest.mark.parametrize("behaviour", ["wait_for_stop", "ignore_stop"])
def test_a_cancelled_job_ends_within_the_grace_period(resources: Resources, behaviour: str) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, behaviour)
        wait_for(lambda: child_pid(resources) is not None)
        process = psutil.Process(child_pid(resources))
        requested_at = time.monotonic()
        assert jobs.cancel_job(resources, OPERATOR, job.id).state is State.CANCELLING
        ended = future.result(timeout=20)
    assert ended is not None
    assert ended.state is State.CANCELLED
    assert time.monotonic() - requested_at < 5.0
    assert not process.is_running()
    assert_nothing_is_left(resources, job)


def test_a_stopped_worker_requeues_its_job(resources: Resources) -> None:
    job = queued(resources)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_next_job, resources, "worker-1", stopping, child("wait_for_stop"))
        wait_for(lambda: child_pid(resources) is not None)
        stopping.set()
        ended = future.result(timeout=20)
    assert ended is not None
    assert (ended.state, ended.attempt) == (State.QUEUED, 0)
    assert_nothing_is_left(resources, job)
    again = run(resources, "finish")
    assert again is not None
    assert (again.state, again.attempt) == (State.SUCCEEDED, 1)


def test_a_worker_without_its_lease_stops_and_changes_nothing(resources: Resources) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, "ignore_stop")
        wait_for(lambda: child_pid(resources) is not None)
        process = psutil.Process(child_pid(resources))
        lease = jobs.get_job(resources, OPERATOR, job.id).lease
        with resources.database.transaction() as transaction:
            leases.renew(transaction, lease, -60.0)
            (lost,) = leases.expired(transaction, 10)
            assert job_changes.requeue(transaction, lost.lease, counts=True, error=None)
        successor = claims.claim_next_job(resources, "worker-2")
        assert successor is not None
        assert future.result(timeout=20) is None
    assert not process.is_running()
    assert jobs.get_job(resources, OPERATOR, job.id).lease == successor.lease


def test_duplicate_hints_are_harmless(resources: Resources) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(run, resources, "finish") for _ in range(3)]
        outcomes = [future.result(timeout=60) for future in futures]
    assert [outcome.state for outcome in outcomes if outcome] == [State.SUCCEEDED]
    assert run(resources, "finish") is None
    assert jobs.get_job(resources, OPERATOR, job.id).attempt == 1


def test_a_hint_at_a_cancelled_job_is_harmless(resources: Resources) -> None:
    in_state(resources, State.CANCELLED)
    assert run(resources, "finish") is None


def test_jobs_are_claimed_by_priority_then_age(resources: Resources) -> None:
    created = [queued(resources, priority=priority) for priority in (5, 9, 0, 9)]
    claimed = [claims.claim_next_job(resources, "worker-1") for _ in created]
    expected = [created[index].id for index in (1, 3, 0, 2)]
    assert [job.id for job in claimed if job] == expected
    assert claims.claim_next_job(resources, "worker-1") is None


@pytest.mark.parametrize("behaviour", ["wait_for_stop", "ignore_stop"])
def test_a_paused_job_runs_again_when_resumed(settings: Settings, behaviour: str) -> None:
    resources = open_resources(settings.model_copy(update={"pause_seconds": 0.3}))
    job = queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, behaviour)
        wait_for(lambda: child_pid(resources) is not None)
        process = psutil.Process(child_pid(resources))
        assert jobs.pause_job(resources, OPERATOR, job.id).state is State.PAUSING
        paused = future.result(timeout=20)
    assert paused is not None
    assert (paused.state, paused.attempt) == (State.PAUSED, 0)
    assert not process.is_running()
    assert run(resources, "finish") is None
    jobs.resume_job(resources, OPERATOR, job.id)
    done = run(resources, "finish")
    assert done is not None
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    with resources.database.transaction() as transaction:
        assert past_runs.by_device(transaction) == []
    resources.close()


def test_an_overdue_job_fails_without_retry(resources: Resources) -> None:
    queued(resources, max_runtime_s=1)
    job = run(resources, "ignore_stop")
    assert job is not None
    assert job.error is not None
    assert (job.state, job.error.code, job.attempt) == (State.FAILED, "timeout", 1)
    assert_nothing_is_left(resources, job)


def test_a_result_ready_before_the_pause_is_published(resources: Resources) -> None:
    job = running(resources)
    jobs.pause_job(resources, OPERATOR, job.id)
    assert succeeded(resources, job).state is State.SUCCEEDED


def test_sources_are_checked_again_on_the_worker(resources: Resources, tmp_path: Path) -> None:
    models = tmp_path / "models"
    weights_on_disk(models / "m")
    queued(resources, model=ModelSource(source="path", ref=str(models / "m")))
    shutil.rmtree(models / "m")
    (models / "m").symlink_to("/etc")
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.error is not None
    assert (ended.state, ended.error.code) == (State.FAILED, "path_not_allowed")
    assert ended.error.field == "/model/ref"
    assert "allow-lists of this worker" in (ended.error.hint or "")


def test_a_ratio_that_only_the_worker_finds_impossible_is_named(
    resources: Resources, tmp_path: Path
) -> None:
    place = weights_on_disk(tmp_path / "models" / "m")
    model = ModelSource(source="path", ref=str(place))
    queued(resources, model=model, compression=CompressionConfig(ratio=0.6))
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    geometry = {"model_type": "llama", "num_attention_heads": 1, **sizes}
    (place / "config.json").write_text(json.dumps(geometry))
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.error is not None
    assert (ended.state, ended.error.code) == (State.FAILED, "budget_out_of_reach")
    assert ended.error.field == "/compression/ratio"
    assert "/compression/ratio: " in ended.error.message


def test_a_job_that_starts_shows_it_at_once(resources: Resources) -> None:
    job = queued(resources)
    shown: list[tuple[str | None, str]] = []

    def starting(request: ChildRequest, log: Path) -> ChildProcess:
        now = jobs.get_job(resources, OPERATOR, job.id)
        shown.append((now.stage, now.progress.message if now.progress else ""))
        return child("finish")(request, log)

    run_next_job(resources, "worker-1", threading.Event(), starting)
    assert shown == [("load", "starting worker process")]


def test_a_failed_job_keeps_its_last_progress(resources: Resources) -> None:
    job = queued(resources)
    run(resources, "fail")
    progress = jobs.get_job(resources, OPERATOR, job.id).progress
    assert progress is not None
    assert (progress.fraction, progress.message) == (0.4, "layer 1/2")


def test_progress_is_repeated_with_less_remaining_time(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(resources)
    job = claims.claim_next_job(resources, "worker-1")
    assert job is not None
    journal = progress_journal.ProgressJournal(resources, job)
    journal.repeat()
    assert jobs.get_job(resources, OPERATOR, job.id).stage is None
    event = ProgressEvent(stage=Stage.PUBLISH, message="file 1", fraction=0.9, eta_seconds=100.0)
    journal.write(event)
    journal.repeat()
    unchanged = jobs.get_job(resources, OPERATOR, job.id).progress
    assert unchanged is not None
    assert unchanged.eta_seconds == 100.0
    monkeypatch.setattr(progress_journal, "LONGEST_PAUSE_SECONDS", 0.0)
    journal.repeat()
    repeated = jobs.get_job(resources, OPERATOR, job.id)
    assert repeated.stage is Stage.PUBLISH
    assert repeated.progress is not None
    assert (repeated.progress.fraction, repeated.progress.message) == (0.9, "file 1")
    assert repeated.progress.eta_seconds is not None
    assert repeated.progress.eta_seconds < 100.0


def test_the_child_receives_the_model_limits(resources: Resources) -> None:
    requests: list[ChildRequest] = []

    def recording_child(request: ChildRequest, log: Path) -> ChildProcess:
        requests.append(request)
        return child("finish")(request, log)

    queued(resources)
    run_next_job(resources, "worker-1", threading.Event(), recording_child)
    assert [request.limits for request in requests] == [resources.settings.model_limits]
    assert requests[0].limits.max_parameters is not None
    assert requests[0].speeds == resources.settings.data_dir / "stage-speeds.json"


def recorded(
    resources: Resources, *slots: Slot, behaviour: str = "finish"
) -> tuple[Job, ChildRequest, str]:
    """Run the next job in free slots; return it, its process's request, and the GPUs it saw."""
    requests: list[ChildRequest] = []

    def recording_child(request: ChildRequest, log: Path) -> ChildProcess:
        requests.append(request)
        return child(behaviour)(request, log)

    stopping = threading.Event()
    job = run_next_job(resources, "worker-1", stopping, recording_child, *slots)
    assert job is not None
    seen = (resources.settings.data_dir / "visible-devices").read_text()
    return job, requests[0], seen


@pytest.mark.parametrize(
    ("device", "gib", "expected", "visible"),
    [
        ("gpu", 10, "cuda", "3"),
        ("auto", 10, "cuda", "3"),
        ("auto", 40, "cpu", ""),
        ("cpu", 1, "cpu", ""),
    ],
)
def test_a_jobs_process_sees_the_gpu_of_its_slot_alone(
    resources: Resources, device: str, gib: int, expected: str, visible: str
) -> None:
    enqueue(resources, device=device, gib=gib)
    slot = Slot(number=0, device=gpu(24), visible_devices="3")
    job, request, seen = recorded(resources, slot, behaviour="tell_devices")
    assert job.state is State.SUCCEEDED
    assert (request.compression.device, request.visible_devices) == (expected, visible)
    assert seen == visible
    assert job.compression.device == device, "the job keeps what was asked for"


def test_a_jobs_process_knows_how_many_jobs_share_the_memory_of_its_host(
    resources: Resources,
) -> None:
    enqueue(resources, device="cpu")
    slot = Slot(number=0, device=cpu(64, jobs_at_once=3), visible_devices="")
    _, request, _ = recorded(resources, slot, behaviour="tell_devices")
    assert request.jobs_at_once == 3


def test_a_job_admitted_before_indices_were_rejected_runs_on_the_only_gpu_that_it_sees(
    resources: Resources,
) -> None:
    enqueue(resources, device="cuda:1")
    slot = Slot(number=0, device=gpu(24), visible_devices="5")
    _, request, seen = recorded(resources, slot, behaviour="tell_devices")
    assert (request.compression.device, seen) == ("cuda", "5")


def test_the_process_of_a_job_on_several_gpus_sees_those_of_its_slots(
    resources: Resources,
) -> None:
    enqueue(resources, device="gpu", gib=10, devices=2)
    free = [
        Slot(number=number, device=gpu(24), visible_devices=name)
        for number, name in enumerate(("3", "5", "6"))
    ]
    job, request, seen = recorded(resources, *free, behaviour="tell_devices")
    assert job.state is State.SUCCEEDED
    assert (request.compression.device, request.compression.devices) == ("cuda", 2)
    assert seen == "3,5"


@pytest.mark.parametrize(("other", "needed"), [(gpu(80), 24 * GIB + 1), (gpu(16), 10 * GIB)])
def test_a_job_that_exceeded_its_gpu_needs_a_larger_one_where_there_is_one(
    resources: Resources, other: Device, needed: int
) -> None:
    enqueue(resources, device="gpu", gib=10)
    register(resources, "worker-2", other)
    register(resources, "worker-1", gpu(24))
    (slot,) = slots(gpu(24))
    job = run_next_job(resources, "worker-1", threading.Event(), child("exceed_device"), slot)
    assert job is not None
    assert job.state is State.QUEUED
    assert job.gpu_bytes == needed
    assert job.waiting is None


def test_files_of_dead_workers_are_removed(resources: Resources) -> None:
    work = resources.work_dir
    alive = running(resources, "worker-1")
    live_directory = work / f"{alive.id}.{alive.fencing_token}"
    for directory in (live_directory, work / f"{alive.id}.0", work / ("job_" + "0" * 26 + ".1")):
        directory.mkdir(parents=True)
    remove_stale_work(resources)
    assert list(work.iterdir()) == [live_directory]


def test_success_removes_the_uploads_of_earlier_attempts_whether_its_durations_are_recorded_or_not(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ValueError("a defect of the estimates")

    monkeypatch.setattr(estimates, "record_run", fail)
    job = queued(resources)
    resources.store.put_new(f"{job_prefix(job)}attempts/0/files/old.bin", b"old")
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.state is State.SUCCEEDED
    assert not any("old.bin" in key for key in resources.store.keys(job_prefix(job)))
    assert len(jobs.list_artifacts(resources, OPERATOR, job.id)) == 3


def test_maintenance_requeues_the_job_of_a_dead_worker(resources: Resources) -> None:
    job = running(resources, "dead")
    with resources.database.transaction() as transaction:
        leases.renew(transaction, job.lease, -1.0)
    MaintenanceThread(resources, DEPLOYMENT_TASKS).run_tasks()
    revived = jobs.get_job(resources, OPERATOR, job.id)
    assert (revived.state, revived.attempt) == (State.QUEUED, 1)


def test_a_job_survives_a_short_database_outage(settings: Settings, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "own-postgres", durable=False)
    server.start()
    url = server.url
    upgrade(settings.model_copy(update={"database_url": url}))
    resources = open_resources(
        settings.model_copy(update={"database_url": url, "lease_seconds": 60.0})
    )
    queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, "finish_on_signal_file")
        wait_for(lambda: child_pid(resources) is not None)
        server.stop()
        for file in resources.work_dir.glob("*/pid"):
            file.with_name("go").touch()
        time.sleep(1.0)
        server.start()
        assert server.url == url
        ended = future.result(timeout=60)
    assert ended is not None
    resources.close()
    server.stop()
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("name", ["put_file", "replace", "sha256", "get_file"])
def test_a_job_survives_a_short_store_outage(
    resources: Resources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    job = queued(resources)
    claimed = claim_job(resources, job.id)
    # A finished layer, which the attempt fetches.
    (tmp_path / "tokens.safetensors").write_bytes(b"tokens")
    layer_files.keep(resources, claimed, tmp_path / "tokens.safetensors")
    claims.requeue_job(resources, claimed.lease, None)
    use, calls = getattr(resources.store, name), []

    def fail_twice(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) < 3:
            raise StoreUnavailableError
        return use(*arguments)

    monkeypatch.setattr(resources.store, name, fail_twice)
    ended = run(resources, "finish")
    assert ended is not None
    assert len(calls) >= 3
    assert (ended.state, ended.attempt, ended.error) == (State.SUCCEEDED, 1, None)


def test_a_pause_ends_the_wait_for_the_store(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(resources)

    def pause_and_fail(*_arguments: object) -> None:
        jobs.pause_job(resources, OPERATOR, job.id)
        raise StoreUnavailableError

    monkeypatch.setattr(resources.store, "put_file", pause_and_fail)
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.state is State.PAUSED


def test_a_long_store_outage_fails_the_attempt(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise StoreUnavailableError

    monkeypatch.setattr(runner, "_STORE_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(resources.store, "put_file", fail)
    queued(resources)
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.error is not None
    assert (ended.state, ended.error.code) == (State.QUEUED, "store_unavailable")


def test_a_job_whose_row_stays_locked_loses_progress_but_not_the_attempt(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that waits for its locks makes others wait like this."""
    job = running(resources)
    monkeypatch.setitem(engine._SESSION, "lock_timeout", "50ms")
    impatient = replace(resources, database=engine.Database(resources.settings.database_url))
    journal = progress_journal.ProgressJournal(impatient, job)
    first, second = (
        ProgressEvent(stage=Stage.COMPRESS, message=f"layer {layer}", fraction=0.5, layer=layer)
        for layer in range(2)
    )
    with resources.database.transaction() as transaction:
        assert leases.lock_owned(transaction, job.lease)
        journal.write(first)
    journal.write(second)
    impatient.database.close()
    progress = jobs.get_job(resources, OPERATOR, job.id).progress
    assert progress is not None
    assert progress.message == "layer 1"


def test_a_success_whose_commit_was_not_confirmed_keeps_its_files(resources: Resources) -> None:
    """The connection broke at the commit: the retry is rejected, but the files are published."""
    job = running(resources)
    succeeded(resources, job)
    publication.discard_attempt(resources, job)
    assert len(resources.store.keys(job_prefix(job))) == 4


def test_a_second_signal_kills_an_unresponsive_child(settings: Settings) -> None:
    """`kill_all_children` ends the drain, which alone would take an hour."""
    resources = open_resources(settings.model_copy(update={"drain_seconds": 3600.0}))
    job, stopping = queued(resources), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_next_job, resources, "worker-1", stopping, child("ignore_stop"))
        wait_for(lambda: child_pid(resources) is not None)
        stopping.set()
        kill_all_children()
        left = run.result(60)
    assert left is not None
    assert (left.state, left.attempt, left.error) == (State.QUEUED, 0, None)
    assert_nothing_is_left(resources, job)
    resources.close()


def test_a_draining_worker_gives_its_child_the_drain_time(settings: Settings) -> None:
    short_drain = settings.model_copy(update={"drain_seconds": 0.1, "child_grace_seconds": 3600.0})
    resources = open_resources(short_drain)
    queued(resources)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_next_job, resources, "worker-1", stopping, child("ignore_stop"))
        wait_for(lambda: child_pid(resources) is not None)
        stopping.set()
        left = run.result(60)
    assert left is not None
    assert (left.state, left.attempt) == (State.QUEUED, 0)
    resources.close()
