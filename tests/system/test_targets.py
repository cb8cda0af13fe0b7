"""A job for each target over HTTP, with its exports, its report and the code of its page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser
from typer.testing import CliRunner

from app.cli.main import app
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.cli.test_verify import make_key
from tests.browsing import IN_BROWSER, chromium, code_of_result, opened
from tests.intraslice_core.export.models import llama_with_merges
from tests.system.clean_environment import run_pasted
from tests.workers.test_worker import state, wait_for, worker

browser = chromium

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]
CALIBRATION = {"source": "pydoc", "samples": 16, "sequence_length": 32, "self_share": 0.0}
EXPORTS: dict[str, list[str]] = {"research": [], "adaptive": ["gguf-f16"], "stock": ["gguf-q8_0"]}
"""GGUF files of each target.

`tests/intraslice_core/export/test_gguf_file.py` has both of one target.
"""
FILES: dict[str, set[str]] = {
    "research": set(),
    "adaptive": {"model-f16.gguf"},
    "stock": {"model-q8_0.gguf"},
}


def job_for(target: str, model: Path, exports: list[str]) -> dict[str, Any]:
    return {
        "model": {"source": "path", "ref": str(model)},
        "compression": {
            "ratio": 0.3,
            "target": target,
            "round_to": 4,
            "exports": ["safetensors", *exports],
            "calibration": CALIBRATION,
        },
        "evaluation": {"perplexity": ["pydoc"], "max_tokens": 256, "benchmark": False},
    }


def assert_signed_download(client: httpx.Client, path: str, place: Path, public_key: Path) -> None:
    """Download the files and check them with `intraslice verify`."""
    place.mkdir()
    for file in client.get(f"{path}/artifacts").json()["data"]:
        (place / file["name"]).write_bytes(client.get(file["url"]).content)
    done = CliRunner().invoke(app, ["verify", str(place), "--public-key", str(public_key)])
    assert done.exit_code == 0, done.output
    licence = json.loads((place / "manifest.json").read_text())["licence"]
    assert licence == "apache-2.0"


def code_after_download(browser: Browser, url: str, place: Path) -> str:
    """Download a result by the code of its page; return the code that loads it."""
    page, log = opened(browser, url)
    download, loading = (code_of_result(page, runtime) for runtime in ("curl", "transformers"))
    done = subprocess.run(["sh", "-c", download], cwd=place, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert log.errors == []
    page.close()
    return loading


def test_every_target_succeeds_and_the_code_of_its_page_loads_the_files(
    browser: Browser, settings: Settings, tmp_path: Path
) -> None:
    model, log = llama_with_merges(tmp_path / "models" / "dense"), tmp_path / "worker.log"
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\nTiny.\n")
    private, public = make_key(tmp_path, "ours")
    rooted = settings.model_copy(
        update={"model_roots": (tmp_path / "models",), "artifact_signing_key_file": private}
    )
    (newcomer := tmp_path / "newcomer").mkdir()
    with (
        serving(rooted) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
        worker(rooted, log) as process,
    ):
        jobs = {
            target: client.post("/v1/jobs", json=job_for(target, model, exports)).json()
            for target, exports in EXPORTS.items()
        }
        for target, job in jobs.items():
            wait_for(lambda job=job: state(client, job) in {"succeeded", "failed"}, log, 400)
            assert state(client, job) == "succeeded", log.read_text()[-3000:]
            path = f"/v1/jobs/{job['id']}"
            files = {file["name"] for file in client.get(f"{path}/artifacts").json()["data"]}
            assert {"config.json", "model.safetensors", "README.md"} <= files
            assert {name for name in files if name.endswith(".gguf")} == FILES[target]
            report = client.get(f"{path}/report").json()
            assert len(report["verified"]) == 1 + len(FILES[target])
            page = client.get(f"{path}/report", headers={"Accept": "text/html"})
            assert page.status_code == httpx.codes.OK
            assert_signed_download(client, path, tmp_path / target, public)
        codes = [
            code_after_download(browser, f"{url}/#/jobs/{job['id']}", newcomer)
            for job in jobs.values()
        ]
        process.terminate()
        assert process.wait(60) == 0, log.read_text()[-3000:]
    outputs = run_pasted(newcomer, *codes)
    assert len(outputs) == len(jobs)
    assert all(output.startswith("The sea is") for output in outputs), outputs
