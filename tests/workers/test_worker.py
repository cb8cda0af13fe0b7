"""The worker process with a real broker, database and engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from app.services.resources import Resources
from app.settings import Settings
from intraslice_client import Client
from tests.app.fleets import enqueue

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
SCRIPT = """
from app.settings import Settings
from workers.main import run_worker
run_worker(Settings())
"""


@contextmanager
def worker(
    settings: Settings, log: Path, script: str = SCRIPT, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker without access to the Hub; `variables` are added to its environment."""
    values = settings.model_dump(mode="json", exclude_none=True)
    values |= {
        name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)
    }
    values["auth"] = "off"
    environment = {
        f"INTRASLICE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **environment, "HF_HUB_OFFLINE": "1", **variables},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.1)


def tiny_model(tmp_path: Path, **sizes: int) -> Path:
    from tests.intraslice_core.tiny_models import tiny_llama

    return tiny_llama(tmp_path / "models" / "tiny", **sizes)


def body(model: Path, *, evaluate: bool = True, **calibration: Any) -> dict[str, Any]:
    return {
        "model": {"source": "path", "ref": str(model)},
        "compression": {
            "ratio": 0.3,
            "calibration": {"samples": 8, "sequence_length": 64} | calibration,
            "batch_size": 4,
            "round_to": 2,
        },
        "evaluation": {"max_tokens": 512, "context_length": 64, "benchmark": False}
        if evaluate
        else None,
    }


def state(client: httpx.Client, job: dict[str, Any]) -> str:
    return str(client.get(job["urls"]["self"]).json()["state"])


def test_a_real_job_from_request_to_download(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    # Starlette's test client has the interface of httpx.Client.
    upload = Client("http://testserver", http=client).uploads.model(model)  # type: ignore[arg-type]
    dense_text = greedy_text(model)
    shutil.rmtree(model)
    with worker(settings, log) as process:
        request = body(model) | {"model": {"source": "upload", "ref": upload.id}}
        job = client.post("/v1/jobs", json=request).json()
        ended = {"succeeded", "failed", "cancelled"}
        wait_for(lambda: state(client, job) in ended, log)
        done = client.get(job["urls"]["self"]).json()
        assert done["state"] == "succeeded", (done["error"], log.read_text()[-3000:])
        generation = answered(client, job, log)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-3000:]
    result = done["result"]
    assert result["params_after"] < result["params_before"]
    assert result["bytes_after"] < result["bytes_before"]
    assert result["perplexity_before"] > 0
    assert client.get(job["urls"]["report"]).json()["params_after"] == result["params_after"]
    target = tmp_path / "downloaded"
    target.mkdir()
    for file in client.get(job["urls"]["artifacts"]).json()["data"]:
        (target / file["name"]).write_bytes(client.get(file["url"]).content)
    from intraslice_core.evaluation.verification import verify_checkpoint

    assert verify_checkpoint(target).prompts > 0
    assert [(answer["model"], answer["text"]) for answer in generation["answers"]] == [
        ("dense", dense_text),
        ("compressed", greedy_text(target)),
    ]
    assert PROMPT not in log.read_text()
    assert str(tmp_path) not in json.dumps(assert_whole_log(client, job))
    assert list((settings.data_dir / "work").glob("*/*")) == []
    speeds = json.loads((settings.data_dir / "stage-speeds.json").read_text())
    ((run,),) = speeds.values()
    assert {"compress", "verify", "evaluate"} <= set(run["seconds"])


def assert_whole_log(client: TestClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that events and log lines share one count, and return the lines."""
    events = client.get(job["urls"]["events"]).json()["data"]
    lines: list[dict[str, Any]] = client.get(f"{job['urls']['self']}/logs").json()["data"]
    numbers = sorted(entry["sequence"] for entry in (*events, *lines))
    assert numbers == list(range(1, len(events) + len(lines) + 1))
    assert {"child_started", "step", "layer_finished"} <= {line["event"] for line in lines}
    assert (events[0]["type"], events[-1]["type"]) == ("queued", "succeeded")
    return lines


PROMPT = "The worker must not log this"


def answered(client: TestClient, job: dict[str, Any], log: Path) -> dict[str, Any]:
    """Send a prompt to both models and return the generation once it has ended."""
    body = {"prompt": PROMPT, "max_new_tokens": 8}
    place = client.post(f"/v1/jobs/{job['id']}/generate", json=body).headers["location"]
    wait_for(lambda: client.get(place).json()["state"] in {"succeeded", "failed"}, log)
    generation: dict[str, Any] = client.get(place).json()
    assert generation["state"] == "succeeded", (generation["error"], log.read_text()[-3000:])
    for answer in generation["answers"]:
        assert min(answer["load_seconds"], answer["tokens_per_second"], answer["new_tokens"]) > 0
    return generation


def greedy_text(directory: Path) -> str:
    from intraslice_core.evaluation.generation import Decoding, continue_prompt

    decoding = Decoding(max_new_tokens=8)
    return continue_prompt(directory, PROMPT, decoding, dtype="auto", device="cpu").text


def start_long_job(client: TestClient, model: Path, log: Path) -> dict[str, Any]:
    """Start a job that runs longer than any test waits."""
    job: dict[str, Any] = client.post(
        "/v1/jobs", json=body(model, samples=20_000, sequence_length=64)
    ).json()

    def is_computing() -> bool:
        progress = client.get(job["urls"]["self"]).json()["progress"]
        return progress is not None and progress["message"] != "starting worker process"

    wait_for(is_computing, log)
    return job


def test_a_running_job_is_cancelled(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    with worker(settings, log):
        job = start_long_job(client, model, log)
        assert client.post(job["urls"]["cancel"]).json()["state"] == "cancelling"
        wait_for(lambda: state(client, job) == "cancelled", log, 20)
    assert client.get(job["urls"]["artifacts"]).json()["data"] == []
    assert list((settings.data_dir / "work").glob("*/*")) == []


def test_a_terminated_workers_job_resumes_on_another_machine(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    # Enough layers to be stopped among them.
    model, log = tiny_model(tmp_path, num_hidden_layers=24), tmp_path / "worker.log"
    request = body(model, evaluate=False, source="pydoc", samples=100, self_share=0.0)
    request["compression"]["allocation"] = "uniform"  # the layers' sizes are not what is resumed
    with worker(settings, log) as process:
        job = client.post("/v1/jobs", json=request).json()
        wait_for(lambda: compressed_layer(client, job) in range(1, 20), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()[-3000:]
    left = client.get(job["urls"]["self"]).json()
    assert (left["state"], left["attempt"], left["error"]) == ("queued", 0, None)
    elsewhere = settings.model_copy(
        update={"data_dir": tmp_path / "elsewhere", "artifact_store": settings.store_url}
    )
    with worker(elsewhere, log):
        undisturbed = client.post("/v1/jobs", json=request).json()
        for each in (job, undisturbed):
            wait_for(lambda each=each: state(client, each) == "succeeded", log)  # type: ignore[misc]
        # The worker removes its files after the job has succeeded.
        wait_for(lambda: list((elsewhere.data_dir / "work").glob("*/*")) == [], log)
    assert report(client, job)["resumed_layers"] >= 1
    assert report(client, undisturbed)["resumed_layers"] == 0
    assert digests(client, job) == digests(client, undisturbed)
    published = {file["name"] for file in client.get(job["urls"]["artifacts"]).json()["data"]}
    (objects,) = (settings.data_dir / "artifacts").glob(f"*/jobs/{job['id']}")
    assert {file.name for file in objects.rglob("*") if file.is_file()} == published


def compressed_layer(client: TestClient, job: dict[str, Any]) -> int:
    """Return the number of the layer that is being compressed; 0 before the second one."""
    current = client.get(job["urls"]["self"]).json()
    # Other stages name layers, too, of which nothing is saved.
    if current["stage"] != "compress" or current["progress"] is None:
        return 0
    return current["progress"]["layer"] or 0


def report(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = client.get(job["urls"]["report"]).json()
    return document


def digests(client: TestClient, job: dict[str, Any]) -> dict[str, str]:
    """Return the digests of the files that contain no times."""
    files = client.get(job["urls"]["artifacts"]).json()["data"]
    timed = ("manifest.json", "intraslice_report.json", "README.md")
    return {file["name"]: file["sha256"] for file in files if file["name"] not in timed}


def test_a_killed_workers_child_dies_and_its_job_is_retried(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    with worker(settings, log) as process:
        job = start_long_job(client, model, log)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
        process.wait()
        _gone, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
    with worker(settings, log):
        wait_for(lambda: client.get(job["urls"]["self"]).json()["attempt"] == 2, log, 30)
        client.post(job["urls"]["cancel"])
        wait_for(lambda: state(client, job) == "cancelled", log, 20)
    events = client.get(job["urls"]["events"]).json()["data"]
    (lost,) = [event for event in events if event["type"] == "requeued"]
    assert lost["data"]["error"]["code"] == "worker_lost"


def test_a_worker_ends_when_its_database_becomes_another_deployments(
    settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with worker(settings, log) as process:
        wait_for(lambda: "worker_started" in log.read_text(), log)
        with resources.database.transaction() as transaction:
            transaction.execute(text("UPDATE deployment SET id = 'dep_restored'"))
        assert process.wait(30) == 0, log.read_text()[-3000:]
    assert "deployment_replaced" in log.read_text()


STOPPED_WHILE_CELERY_STARTS = f"""
import os, signal
from celery.signals import celeryd_after_setup
# Celery sends this signal before it installs its handlers.
celeryd_after_setup.connect(lambda **_: os.kill(os.getpid(), signal.SIGTERM), weak=False)
{SCRIPT}
"""


def test_a_signal_while_celery_starts_stops_the_worker(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with worker(settings, log, STOPPED_WHILE_CELERY_STARTS) as process:
        assert process.wait(30) == 0, log.read_text()[-3000:]
    assert "worker_stopped" in log.read_text()


FAKE_ENGINE = f"""
import functools, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from app.settings import Settings
from tests.workers.test_runner import child
from workers import job_slots, main
start = child("finish_with_report")
job_slots.run_job = functools.partial(job_slots.run_job, start_child=start)
main.run_worker(Settings())
"""
"""Worker for tests of its queue, whose children do not run the engine."""


def test_queued_jobs_run_while_the_broker_is_away(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    broker = f"redis+socket://{tmp_path}/away.sock?virtual_host=0"
    away = settings.model_copy(update={"broker_url": broker})
    with worker(away, log, FAKE_ENGINE) as process:
        jobs = [client.post("/v1/jobs", json=body(model, evaluate=False)).json() for _ in range(2)]
        wait_for(lambda: all(state(client, job) == "succeeded" for job in jobs), log)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-3000:]


def test_a_job_waits_for_an_unavailable_broker(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    """The API's wake-up message is lost; the worker's maintenance sends another."""
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    disconnected = settings.model_copy(
        update={"broker_url": "redis+socket:///nonexistent.sock?virtual_host=0"}
    )
    from app.main import create_app

    with TestClient(create_app(disconnected)) as api:
        response = api.post("/v1/jobs", json=body(model))
        assert response.status_code == 202
        assert api.get("/readyz").status_code == 503
        assert api.get("/livez").status_code == 200
    job = response.json()
    with worker(settings, log, FAKE_ENGINE):
        wait_for(lambda: state(client, job) == "succeeded", log)


TWO_GPUS = f"""
import functools, json, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from app.settings import Settings
from tests.app.fleets import gpu
from tests.workers.test_runner import child
from workers import devices, job_slots, main
listed = [gpu(24).model_dump(mode="json"), gpu(80).model_dump(mode="json")]
devices.DRIVERS = (pathlib.Path("/"),)
devices.PROBE = (sys.executable, "-c", "print(" + repr(json.dumps(listed)) + ")")
start = child("finish_on_signal_file")
job_slots.run_job = functools.partial(job_slots.run_job, start_child=start)
main.run_worker(Settings())
"""


def devices_of(client: TestClient) -> list[dict[str, Any]]:
    """Return the devices of the only worker; none while it is not registered."""
    fleet = client.get("/v1/service").json()["fleet"]
    return fleet[0]["devices"] if fleet else []


def test_one_worker_drives_every_gpu_and_shows_what_each_is_doing(
    client: TestClient, settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    large = enqueue(resources, device="gpu", gib=40)
    too_large = enqueue(resources, device="gpu", gib=100, priority=9)
    with worker(settings, log, TWO_GPUS) as process:
        wait_for(lambda: state_of(client, large.id) == "running", log)
        small = enqueue(resources, device="gpu", gib=10)
        wait_for(lambda: state_of(client, small.id) == "running", log)
        first, second = devices_of(client)
        assert [job["job_id"] for job in first["jobs"]] == [small.id]
        assert [job["job_id"] for job in second["jobs"]] == [large.id]
        waiting = client.get(f"/v1/jobs/{too_large.id}").json()["waiting"]
        assert waiting["message"] == "waiting: no worker with a GPU of ≥ 100 GiB"
        for directory in (settings.data_dir / "work").glob("*/*.1"):
            (directory / "go").touch()
        wait_for(lambda: state_of(client, small.id) == "succeeded", log)
        wait_for(lambda: state_of(client, large.id) == "succeeded", log)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-3000:]
    assert devices_of(client) == [], "the registration ends with the worker"


def test_the_registration_of_a_killed_worker_expires(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with worker(settings, log) as process:
        wait_for(lambda: devices_of(client) != [], log)
        assert devices_of(client)[0]["kind"] == "cpu"
        process.kill()
    wait_for(lambda: devices_of(client) == [], log, 30)


def state_of(client: TestClient, job_id: str) -> str:
    return str(client.get(f"/v1/jobs/{job_id}").json()["state"])
