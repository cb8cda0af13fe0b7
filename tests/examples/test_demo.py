"""Error handling of the demo, against a mock server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.schemas import JobCreate
from examples.demo import LOADER, DemoFailed, download, follow, job_of, submit

WEIGHTS = b"weights" * 1000


def client(answers: dict[str, Any]) -> httpx.Client:
    def handle(request: httpx.Request) -> httpx.Response:
        answer = answers[request.url.path]
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        status, body = answer
        return httpx.Response(status, json=body)

    return httpx.Client(base_url="http://service", transport=httpx.MockTransport(handle))


def listing(digest: str) -> dict[str, Any]:
    return {
        "data": [
            {"name": "model/config.json", "sha256": digest, "url": "http://service/files/config"}
        ]
    }


def test_a_failed_job_ends_the_demo_with_the_jobs_error() -> None:
    job = {"state": "failed", "error": {"code": "out_of_memory", "message": "too large"}}
    with client({"/job": (200, job)}) as http, pytest.raises(DemoFailed, match="out_of_memory"):
        follow(http, "/job")


def test_a_rejected_job_ends_the_demo_with_the_servers_message() -> None:
    problem = {"title": "Bad ratio", "code": "invalid"}
    with client({"/v1/jobs": (422, problem)}) as http, pytest.raises(DemoFailed, match="Bad ratio"):
        submit(http, job_of(0.2, quick=False))


def test_a_damaged_artifact_is_detected(tmp_path: Path) -> None:
    answers = {
        "/job/artifacts": (200, listing(hashlib.sha256(b"other").hexdigest())),
        "/files/config": WEIGHTS,
    }
    with client(answers) as http, pytest.raises(DemoFailed, match="is damaged: its SHA-256"):
        download(http, "/job", tmp_path)


def test_an_intact_download_is_a_checkpoint_directory(tmp_path: Path) -> None:
    answers = {
        "/job/artifacts": (200, listing(hashlib.sha256(WEIGHTS).hexdigest())),
        "/files/config": WEIGHTS,
    }
    with client(answers) as http:
        assert download(http, "/job", tmp_path) == tmp_path / "model"
    assert (tmp_path / "model" / "config.json").read_bytes() == WEIGHTS


def test_the_loader_fails_where_intraslice_can_be_imported(
    tmp_path: Path,
) -> None:
    def load(packages: Path) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-I", "-S", str(LOADER), str(tmp_path / "none"), "hello"]
        return subprocess.run(
            [*arguments, "--packages", str(packages)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    with_us = load(Path(__file__).parents[2])
    assert with_us.returncode == 1
    assert "intraslice_core, app, workers can be imported" in with_us.stderr
    # With third-party packages alone it cannot import IntraSlice, and fails at the missing model.
    without_us = load(Path(sysconfig.get_path("purelib")))
    assert "can be imported" not in without_us.stderr
    assert str(tmp_path / "none") in without_us.stderr


@pytest.mark.parametrize("quick", [False, True])
def test_the_job_of_the_demo_is_plain_json_that_the_service_accepts(quick: bool) -> None:
    job = job_of(0.1, quick=quick)
    assert json.loads(json.dumps(job)) == job
    request = JobCreate.model_validate(job)
    assert request.compression.method == "intraslice_plus"
    assert request.evaluation is not None
    assert request.evaluation.benchmark is not quick


def test_a_quick_demo_differs_in_amounts_and_takes_the_same_steps() -> None:
    amounts = {"allocation", "calibration.samples", "calibration.sequence_length"}
    amounts |= {"max_tokens", "context_length", "benchmark"}
    whole, quick = (flat(job_of(0.1, quick=quick)) for quick in (False, True))
    differing = {name for name in whole | quick if whole.get(name) != quick.get(name)}
    assert differing == amounts


def flat(job: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a job by name; those of the text have a prefix."""
    calibration = job["compression"]["calibration"]
    settings = job["compression"] | job["evaluation"]
    del settings["calibration"]
    return settings | {f"calibration.{name}": value for name, value in calibration.items()}
