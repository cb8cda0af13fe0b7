"""Pipeline examples: shell steps, webhook receiver, alert rules and Grafana panels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.adapters.webhook_signing import WebhookSecrets, signed_headers
from app.settings import Settings
from examples.mlops.airflow_steps import STEPS
from examples.mlops.webhook_receiver import receiver
from intraslice_core.checkpoints.manifest import write_manifest
from tests.app.api.serving import serving
from tests.app.checkpoints import finished_checkpoint
from tests.app.mlflow_server import mlflow_server
from tests.workers.test_worker import FAKE_ENGINE, tiny_model, worker

PLACE = Path(__file__).parents[2] / "examples" / "mlops"
TELEMETRY = Path(__file__).parents[2] / "app" / "telemetry" / "metrics.py"
PROMTOOL = shutil.which("promtool")
OPTIONS = "--calibration pydoc --samples 8 --sequence-length 64 --round-to 2 --no-evaluation"
SUFFIXES = re.compile(r"_(total|bucket|count|sum)$")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here: Debian has it in the package prometheus"
)


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """Environment in which `intraslice` is this checkout."""
    program = tmp_path / "bin" / "intraslice"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli.main "$@"\n')
    program.chmod(0o755)
    root = str(PLACE.parents[1])
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": root}


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[str]:
    log = tmp_path / "worker.log"
    with serving(settings) as (url, _), worker(settings, log, FAKE_ENGINE):
        yield url


def shell(script: str, place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.broker
def test_the_steps_of_the_workflow_run(
    service: str, commands: dict[str, str], tmp_path: Path
) -> None:
    workflow = yaml.safe_load((PLACE / "github-actions.yml").read_text())
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["compress"]["steps"]}
    assert list(steps) == ["Install", "Check", "Compress", "Download", "Register"]
    output = tmp_path / "output"
    environment = commands | {
        "INTRASLICE_URL": service,
        "MODEL": f"path:{tiny_model(tmp_path)}",
        "RATIO": "0.3",
        "OPTIONS": OPTIONS,
        "GITHUB_RUN_ID": "7",
        "GITHUB_OUTPUT": str(output),
    }
    for name in ("Check", "Compress"):
        shell(steps[name], tmp_path, environment)
    job = output.read_text().strip().removeprefix("job=")
    shell(steps["Download"], tmp_path, environment | {"JOB": job})
    assert (tmp_path / "small" / "model.safetensors").is_file()
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    # A re-run finds the job of the first run.
    shell(steps["Compress"], tmp_path, environment)
    assert output.read_text().splitlines() == [f"job={job}"] * 2


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.broker
def test_the_steps_of_the_dag_run(service: str, commands: dict[str, str], tmp_path: Path) -> None:
    environment = commands | {
        "INTRASLICE_URL": service,
        "MODEL": f"path:{tiny_model(tmp_path)}",
        "RATIO": "0.3",
        "OPTIONS": OPTIONS,
        "RUN": "scheduled-1",
        "PLACE": str(tmp_path / "out"),
    }
    printed = {"submit": " "}
    for name, command in STEPS.items():
        # As in Airflow: the last line of both streams is the task's result.
        job = printed["submit"].splitlines()[-1]
        printed[name] = shell(f"exec 2>&1; {command}", tmp_path, environment | {"JOB": job})
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_good_checkpoint_is_promoted(
    commands: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = finished_checkpoint(tmp_path / "small")  # its perplexity ratio is 1.22
    (tmp_path / "mlflow").mkdir()
    promote = f"{sys.executable} {PLACE}/promote_in_mlflow.py small --mlflow $MLFLOW"
    with mlflow_server(tmp_path / "mlflow") as url:
        environment = commands | {"MLFLOW": url}
        done = shell(f"{promote} --most 1.2 2>&1 || echo code $?", tmp_path, environment)
        assert "intraslice-Big-1B version 1 is not promoted: perplexity ratio 1.22" in done
        assert done.endswith("code 1\n")
        assert "@smaller is version 1" in shell(promote, tmp_path, environment)
        output = shell("intraslice register small --mlflow $MLFLOW", tmp_path, environment)
        assert "was registered already: intraslice-Big-1B version 1" in output
        (tmp_path / "small" / "notes.txt").write_text("another")
        write_manifest(checkpoint, {"model": "hub:org/Big-1B@main"})
        output = shell("intraslice register small --mlflow $MLFLOW", tmp_path, environment)
        assert "registered as intraslice-Big-1B version 2" in output
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.artifacts import download_artifacts

        served = Path(
            download_artifacts(
                "models:/intraslice-Big-1B@smaller", dst_path=str(tmp_path / "served")
            )
        )
    assert (served / "model.safetensors").read_bytes() == bytes(range(256))
    assert not (served / "notes.txt").exists()


def test_the_dag_compiles_and_has_every_step() -> None:
    text = (PLACE / "airflow_dag.py").read_text()
    compile(text, "airflow_dag.py", "exec")
    assert "STEPS.items()" in text
    variables = {name for command in STEPS.values() for name in re.findall(r"\$([A-Z]+)", command)}
    assert variables <= set(re.findall(r'"([A-Z_]+)":', text))


def test_the_receiver_handles_a_signed_delivery_once(capsys: pytest.CaptureFixture[str]) -> None:
    secret, _kept = WebhookSecrets("a signing key").create("whk_1")
    body = json.dumps({"type": "job.failed", "data": {"id": "job_1", "state": "failed"}})
    good = signed_headers("msg_1", datetime.now(UTC), body, [secret])
    server = receiver(secret, 0)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        for _ in range(2):
            assert httpx.post(url, content=body, headers=good).status_code == 204
        assert httpx.post(url, content=body + " ", headers=good).status_code == 400
        assert httpx.post(url, content=body).status_code == 400
        time.sleep(0.1)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().out == "job.failed: job_1 is failed\n"


def expressions() -> list[str]:
    """Return the expressions of the dashboard and of the rules."""
    dashboard: dict[str, Any] = json.loads((PLACE / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((PLACE / "alerts.yml").read_text())["groups"][0]["rules"]
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return targets + [rule["expr"] for rule in rules]


def test_queried_metrics_exist() -> None:
    exported = set(re.findall(r'"(intraslice_\w+)"', TELEMETRY.read_text()))
    queried = {
        name for expression in expressions() for name in re.findall(r"intraslice_\w+", expression)
    }
    assert {name for name in queried if SUFFIXES.sub("", name) not in exported} == set()


def test_panels_are_complete_and_do_not_overlap() -> None:
    dashboard = json.loads((PLACE / "grafana-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["type"] in ("timeseries", "stat")
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@needs_promtool
def test_rules_are_valid_and_fire() -> None:
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run([str(PROMTOOL), *command], cwd=PLACE, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_expression_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
