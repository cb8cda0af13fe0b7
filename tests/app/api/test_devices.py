"""The device that a job asks for, and workers that have none of its kind, over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.worker import GIB, WaitingCode
from app.services.requirements import CONTEXT_BYTES
from app.services.resources import Resources
from tests.app.api.test_metrics import values
from tests.app.builders import BODY
from tests.app.checkpoints import headers_only
from tests.app.fleets import CPU, enqueue, gpu, miss_heartbeats, register

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def asking_for(device: str, **compression: Any) -> dict[str, Any]:
    return BODY | {"compression": {"ratio": 0.25, "device": device} | compression}


@pytest.fixture
def wide(tmp_path: Path) -> dict[str, Any]:
    """Return the source of a model of which one layer takes a gigabyte on a GPU."""
    place = headers_only(tmp_path / "models" / "wide", hidden_size=4096, intermediate_size=16_384)
    return {"source": "path", "ref": str(place)}


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu", "cuda"])
def test_kinds_of_devices_are_accepted(client: TestClient, device: str) -> None:
    answer = client.post("/v1/jobs", json=asking_for(device))
    assert answer.status_code == 202, answer.text
    assert answer.json()["compression"]["device"] == device


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "gpu:1", "cpu:0", "tpu"])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate", "/v1/sweeps"])
def test_a_device_of_one_machine_is_rejected_with_what_to_write(
    client: TestClient, path: str, device: str
) -> None:
    if path == "/v1/sweeps":
        settings = {"compression": {"device": device}, "ratios": [0.2, 0.3]}
        body = {"model": BODY["model"]} | settings
    else:
        body = asking_for(device)
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/compression/device", "device_not_allowed")
    assert error["message"].startswith(f"{device!r} is a device of one machine: write gpu, cpu or")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate"])
def test_several_devices_are_gpus(client: TestClient, path: str) -> None:
    for device in ("auto", "gpu"):
        answer = client.post(path, json=asking_for(device, devices=2))
        assert answer.is_success, answer.text
    answer = client.post(path, json=asking_for("cpu", devices=2))
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/compression/devices", "device_not_allowed")
    assert error["message"] == "a job on a CPU runs on 1 device, not on 2: use gpu or auto"
    assert client.post(path, json=asking_for("gpu", devices=0)).status_code == 422


def test_a_queued_job_says_why_no_worker_can_run_it(
    client: TestClient, resources: Resources
) -> None:
    job = enqueue(resources, device="gpu", gib=40)
    register(resources, "small", gpu(24))
    expected = {
        "code": "gpu_memory",
        "message": "waiting: no worker with a GPU of ≥ 40 GiB",
        "gpu_bytes": 40 * GIB,
        "host_bytes": None,
    }
    shown = client.get(f"/v1/jobs/{job.id}")
    assert shown.json()["waiting"] == expected
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert listed["waiting"] == expected
    register(resources, "large", gpu(80))
    headers = {"if-none-match": shown.headers["etag"]}
    again = client.get(f"/v1/jobs/{job.id}", headers=headers)
    assert (again.status_code, again.json()["waiting"]) == (200, None)


def cautions(client: TestClient, body: dict[str, Any]) -> dict[str, str]:
    """Return the warnings of a validation by code."""
    answer = client.post("/v1/jobs:validate", json=body)
    assert answer.status_code == 200, answer.text
    return {warning["code"]: warning["message"] for warning in answer.json()["warnings"]}


def test_validation_warns_of_a_job_that_no_worker_can_run(
    client: TestClient, resources: Resources, wide: dict[str, Any]
) -> None:
    body = asking_for("gpu") | {"model": wide}
    assert "no worker is registered" in cautions(client, body)["no_suitable_worker"]
    register(resources, "small", CPU, gpu(1))
    message = cautions(client, body)["no_suitable_worker"]
    assert "no worker with a GPU of ≥" in message
    assert "set device to auto" in message
    for other in ("auto", "cpu"):
        assert "no_suitable_worker" not in cautions(client, asking_for(other) | {"model": wide})
    register(resources, "large", gpu(200))
    assert "no_suitable_worker" not in cautions(client, body)
    pair = asking_for("auto", devices=2) | {"model": wide}
    message = cautions(client, pair)["no_suitable_worker"]
    assert re.search(r"with 2 equal GPUs of ≥ \d+ GiB; start one, or lower devices$", message)
    register(resources, "large", gpu(200), gpu(200))
    assert "no_suitable_worker" not in cautions(client, pair)


def test_validation_forecasts_no_start_on_devices_that_the_job_cannot_use(
    client: TestClient, resources: Resources
) -> None:
    def start(device: str, **more: Any) -> float | None:
        answer = client.post("/v1/jobs:validate", json=asking_for(device, **more)).json()
        seconds: float | None = answer["queue"]["seconds"]
        return seconds

    register(resources, "worker-1", CPU)
    assert (start("cpu"), start("gpu")) == (0.0, None)
    register(resources, "worker-1", gpu(200))
    assert (start("gpu"), start("auto", devices=4)) == (0.0, None)


def test_validation_estimates_the_memory_on_a_gpu(client: TestClient, wide: dict[str, Any]) -> None:
    local = {"source": "pydoc", "samples": 8, "sequence_length": 128}
    body = asking_for("gpu", calibration=local) | {"model": wide, "evaluation": None}
    needed = client.post("/v1/jobs:validate", json=body).json()["gpu_bytes"]
    assert needed > GIB + CONTEXT_BYTES
    elsewhere = body | {"model": {"source": "hub", "ref": "allowed/model"}}
    assert client.post("/v1/jobs:validate", json=elsewhere).json()["gpu_bytes"] is None


def test_validation_warns_of_too_little_memory_for_a_cpu(
    client: TestClient, resources: Resources, wide: dict[str, Any]
) -> None:
    calibration = {"source": "pydoc", "samples": 4096, "sequence_length": 4096}
    body = asking_for("cpu", calibration=calibration) | {"model": wide}
    register(resources, "worker", CPU)
    message = cautions(client, body)["memory_short"]
    assert "waiting: no worker with ≥" in message
    assert "lower batch_size or the calibration tokens" in message
    waiting = client.post("/v1/jobs", json=body).json()["waiting"]
    assert (waiting["code"], waiting["gpu_bytes"]) == ("host_memory", None)
    assert waiting["host_bytes"] > CPU.memory_bytes
    assert waiting["message"] in message
    assert "memory_short" not in cautions(client, asking_for("cpu") | {"model": wide})
    register(resources, "with-gpu", gpu(200))
    on_gpu = asking_for("auto", calibration=calibration) | {"model": wide}
    assert "memory_short" not in cautions(client, on_gpu)


def test_waiting_jobs_and_devices_are_gauges(client: TestClient, resources: Resources) -> None:
    enqueue(resources, device="gpu", gib=40)
    register(resources, "small", CPU, gpu(24))
    name = "intraslice_jobs_waiting"
    expected = {(code,): 0 for code in WaitingCode} | {("gpu_memory",): 1}
    assert values(client, name) == expected
    assert values(client, "intraslice_devices") == {("cpu",): 1, ("gpu",): 1}
    miss_heartbeats(resources, "small")
    assert values(client, name) == expected | {("no_worker",): 1, ("gpu_memory",): 0}
