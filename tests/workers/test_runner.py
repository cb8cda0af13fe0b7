"""One job from claim to end, with a child that behaves as told; everything else is real."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from app.adapters.database import jobs as job_rows
from app.adapters.database.migrate import upgrade
from app.domain.artifact import job_prefix
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.embedded.postgres import EmbeddedPostgres
from app.services import claims, jobs, publication
from app.services.resources import Resources, open_resources
from app.settings import Settings
from tests.app.builders import in_state, queued, running, succeeded, weights_on_disk
from workers.child_process import ChildProcess, kill_all_children
from workers.messages import ChildRequest
from workers.periodic_tasks import DEPLOYMENT_TASKS, MaintenanceThread
from workers.runner import StartChild, remove_stale_work, run_next_job

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


def nothing_is_left(resources: Resources, job: Job) -> None:
    assert resources.store.keys(job_prefix(job.id)) == []
    assert jobs.list_artifacts(resources, OPERATOR, job.id) == []
    assert list(resources.settings.work_dir.glob("*")) == []


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def child_pid(resources: Resources) -> int | None:
    for file in resources.settings.work_dir.glob("*/pid"):
        text = file.read_text()
        return int(text) if text else None
    return None


@pytest.mark.parametrize("behaviour", ["finish", "babble"])
def test_finished_child_makes_a_succeeded_job(resources: Resources, behaviour: str) -> None:
    queued(resources)
    job = run(resources, behaviour)
    assert job is not None
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    assert job.result.params_after == 700
    names = [file.name for file in jobs.list_artifacts(resources, OPERATOR, job.id)]
    assert names == ["config.json", "manifest.json", "model.safetensors"]
    assert len(resources.store.keys(job_prefix(job.id))) == 3
    assert list(resources.settings.work_dir.glob("*")) == []
    events = jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100)
    stages = [event.data["stage"] for event in events if event.type == "progress"]
    assert stages == ["compress", "publish"]


def test_engine_error_fails_the_job_at_once(resources: Resources) -> None:
    queued(resources)
    job = run(resources, "fail")
    assert job is not None
    assert job.state is State.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.layer, job.error.module) == ("numerical", 1, "mlp")
    assert not job.error.retryable
    nothing_is_left(resources, job)


@pytest.mark.parametrize(
    ("behaviour", "code"), [("be_killed", "out_of_memory"), ("crash", "child_crashed")]
)
def test_dead_child_is_tried_again_until_the_attempts_are_used_up(
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
    nothing_is_left(resources, job)


@pytest.mark.parametrize("behaviour", ["wait_for_stop", "ignore_stop"])
def test_cancelled_job_ends_within_the_grace(resources: Resources, behaviour: str) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, behaviour)
        wait_for(lambda: child_pid(resources) is not None)
        process = psutil.Process(child_pid(resources))
        asked = time.monotonic()
        assert jobs.cancel_job(resources, OPERATOR, job.id).state is State.CANCELLING
        ended = future.result(timeout=20)
    assert ended is not None
    assert ended.state is State.CANCELLED
    assert time.monotonic() - asked < 5.0
    assert not process.is_running()
    nothing_is_left(resources, job)


def test_stopped_worker_gives_the_job_back(resources: Resources) -> None:
    job = queued(resources)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_next_job, resources, "worker-1", stopping, child("wait_for_stop"))
        wait_for(lambda: child_pid(resources) is not None)
        stopping.set()
        ended = future.result(timeout=20)
    assert ended is not None
    assert (ended.state, ended.attempt) == (State.QUEUED, 0)
    nothing_is_left(resources, job)
    again = run(resources, "finish")
    assert again is not None
    assert (again.state, again.attempt) == (State.SUCCEEDED, 1)


def test_worker_that_lost_its_lease_stops_and_touches_nothing(resources: Resources) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, "ignore_stop")
        wait_for(lambda: child_pid(resources) is not None)
        process = psutil.Process(child_pid(resources))
        lease = jobs.get_job(resources, OPERATOR, job.id).lease
        with resources.database.transaction() as transaction:
            job_rows.renew(transaction, lease, -60.0)
            (lost,) = job_rows.expired(transaction, 10)
            assert job_rows.requeue(transaction, lost.lease, counts=True, error=None)
        successor = claims.claim_job(resources, job.id, "worker-2")
        assert successor is not None
        assert future.result(timeout=20) is None
    assert not process.is_running()
    assert jobs.get_job(resources, OPERATOR, job.id).lease == successor.lease


def test_duplicate_delivery_is_harmless(resources: Resources) -> None:
    job = queued(resources)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(run, resources, "finish") for _ in range(3)]
        outcomes = [future.result(timeout=60) for future in futures]
    assert [outcome.state for outcome in outcomes if outcome] == [State.SUCCEEDED]
    assert run(resources, "finish") is None
    assert jobs.get_job(resources, OPERATOR, job.id).attempt == 1


def test_hint_at_a_cancelled_job_is_harmless(resources: Resources) -> None:
    in_state(resources, State.CANCELLED)
    assert run(resources, "finish") is None


def test_urgent_jobs_are_taken_first_and_old_ones_before_new_ones(resources: Resources) -> None:
    made = [queued(resources, priority=priority) for priority in (5, 9, 0, 9)]
    taken = [claims.claim_next_job(resources, "worker-1") for _ in made]
    wanted = [made[index].id for index in (1, 3, 0, 2)]
    assert [job.id for job in taken if job] == wanted
    assert claims.claim_next_job(resources, "worker-1") is None


@pytest.mark.parametrize("behaviour", ["wait_for_stop", "ignore_stop"])
def test_paused_job_is_put_aside_and_goes_on_when_resumed(
    resources: Resources, behaviour: str
) -> None:
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


def test_job_that_runs_too_long_fails_and_is_not_tried_again(resources: Resources) -> None:
    queued(resources, max_runtime_s=1)
    job = run(resources, "ignore_stop")
    assert job is not None
    assert job.error is not None
    assert (job.state, job.error.code, job.attempt) == (State.FAILED, "timeout", 1)
    nothing_is_left(resources, job)


def test_result_that_was_ready_before_the_pause_is_kept(resources: Resources) -> None:
    job = running(resources)
    jobs.pause_job(resources, OPERATOR, job.id)
    assert succeeded(resources, job).state is State.SUCCEEDED


def test_sources_are_checked_again_where_they_are_read(
    resources: Resources, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    weights_on_disk(models / "m")
    queued(resources, model=ModelSource(source="path", ref=str(models / "m")))
    shutil.rmtree(models / "m")
    (models / "m").symlink_to("/etc")
    ended = run(resources, "finish")
    assert ended is not None
    assert ended.error is not None
    assert (ended.state, ended.error.code) == (State.FAILED, "source_not_allowed")


def test_child_is_told_how_large_a_model_may_be(resources: Resources) -> None:
    told: list[ChildRequest] = []

    def listening(request: ChildRequest, log: Path) -> ChildProcess:
        told.append(request)
        return child("finish")(request, log)

    queued(resources)
    run_next_job(resources, "worker-1", threading.Event(), listening)
    assert [request.limits for request in told] == [resources.settings.model_limits]
    assert told[0].limits.max_parameters is not None


def test_leftovers_of_dead_workers_are_removed(resources: Resources) -> None:
    work = resources.settings.work_dir
    alive = claims.claim_job(resources, queued(resources).id, "worker-1")
    assert alive is not None
    kept = work / f"{alive.id}.{alive.fencing_token}"
    for directory in (kept, work / f"{alive.id}.0", work / ("job_" + "0" * 26 + ".1")):
        directory.mkdir(parents=True)
    remove_stale_work(resources)
    assert list(work.iterdir()) == [kept]


def test_success_removes_what_earlier_attempts_uploaded(resources: Resources) -> None:
    job = queued(resources)
    resources.store.put_new(f"{job_prefix(job.id)}attempts/0/files/old.bin", b"old")
    assert run(resources, "finish") is not None
    assert not any("old.bin" in key for key in resources.store.keys(job_prefix(job.id)))
    assert len(jobs.list_artifacts(resources, OPERATOR, job.id)) == 3


def test_maintenance_requeues_the_job_of_a_dead_worker(resources: Resources) -> None:
    job = claims.claim_job(resources, queued(resources).id, "dead")
    assert job is not None
    with resources.database.transaction() as transaction:
        job_rows.renew(transaction, job.lease, -1.0)
    MaintenanceThread(resources, DEPLOYMENT_TASKS).run_tasks()
    revived = jobs.get_job(resources, OPERATOR, job.id)
    assert (revived.state, revived.attempt) == (State.QUEUED, 1)


def test_job_outlives_a_short_outage_of_the_database(settings: Settings, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "own-postgres", durable=False)
    server.start()
    url = server.url
    upgrade(settings.model_copy(update={"database_url": url}))
    resources = open_resources(
        settings.model_copy(update={"database_url": url, "lease_seconds": 60.0})
    )
    queued(resources)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, resources, "finish_when_told")
        wait_for(lambda: child_pid(resources) is not None)
        server.stop()
        for file in resources.settings.work_dir.glob("*/pid"):
            file.with_name("go").touch()
        time.sleep(1.0)
        server.start()
        assert server.url == url
        ended = future.result(timeout=60)
    assert ended is not None
    resources.close()
    server.stop()
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)


def test_success_that_the_worker_did_not_hear_of_keeps_its_files(resources: Resources) -> None:
    """The connection broke at the commit: the second try is refused, the files are published."""
    job = running(resources)
    succeeded(resources, job)
    publication.discard_attempt(resources, job.lease)
    assert len(resources.store.keys(job_prefix(job.id))) == 4


def test_a_worker_in_a_hurry_does_not_wait_for_a_deaf_child(settings: Settings) -> None:
    """What the second signal does; the first alone would give it an hour."""
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
    nothing_is_left(resources, job)
    resources.close()


def test_a_draining_worker_gives_its_child_the_drain_time(settings: Settings) -> None:
    impatient = settings.model_copy(update={"drain_seconds": 0.1, "child_grace_seconds": 3600.0})
    resources = open_resources(impatient)
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
