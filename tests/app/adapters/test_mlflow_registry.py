"""Checkpoints become model versions of a real MLflow server, each once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from app.adapters import mlflow_registry
from app.adapters.finished_checkpoints import read_facts
from app.adapters.mlflow_registry import register_version
from app.domain.errors import HandOffError
from app.domain.hand_off import MANIFEST_TAG, HandedOff
from tests.app.checkpoints import contents, finished_checkpoint
from tests.app.mlflow_server import mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def hand_over(server: str, checkpoint: Path, name: str) -> HandedOff:
    facts, _ = read_facts(checkpoint)
    return register_version(checkpoint, facts, uri=server, name=name)


def test_a_version_has_the_files_settings_and_metrics(server: str, tmp_path: Path) -> None:
    checkpoint = finished_checkpoint(tmp_path / "small")
    registered = hand_over(server, checkpoint, "whole")
    assert registered.reference == "whole version 1"
    assert httpx.get(registered.url).is_success

    client = MlflowClient(tracking_uri=server)
    version = client.get_model_version("whole", "1")
    assert version.status == "READY"
    assert version.tags["intraslice.base_licence"] == "apache-2.0"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["calibration.samples"] == "128"
    assert run.data.metrics["perplexity/upload-upl_1/compressed"] == 15.25
    downloaded = client.download_artifacts(version.run_id, "checkpoint", str(tmp_path))
    assert contents(Path(downloaded)) == contents(checkpoint)


def test_a_checkpoint_gets_one_version_and_another_checkpoint_the_next(
    server: str, tmp_path: Path
) -> None:
    first = finished_checkpoint(tmp_path / "first")
    assert hand_over(server, first, "once").new
    again = hand_over(server, first, "once")
    assert not again.new
    assert again.reference == "once version 1"
    second = finished_checkpoint(tmp_path / "second", weights=b"others" * 40)
    assert hand_over(server, second, "once").reference == "once version 2"


def test_an_interrupted_registration_resumes_in_its_run(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = finished_checkpoint(tmp_path / "interrupted")

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_registry, "_new_version", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hand_over(server, checkpoint, "resumed")
    assert hand_over(server, checkpoint, "resumed").new
    client = MlflowClient(tracking_uri=server)
    digest = read_facts(checkpoint)[0].manifest_sha256
    experiment = client.get_experiment_by_name("intraslice")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{MANIFEST_TAG}` = '{digest}'")
    assert len(runs) == 1


def test_a_password_in_the_address_is_never_shown(server: str, tmp_path: Path) -> None:
    secret = server.replace("http://", "http://robot:hush-hush@")
    done = hand_over(secret, finished_checkpoint(tmp_path / "quiet"), "quiet")
    assert done.url.startswith(f"{server}/#/models/quiet")
    with pytest.raises(HandOffError) as caught:
        hand_over("http://robot:hush-hush@127.0.0.1:9", tmp_path / "quiet", "quiet")
    assert "hush-hush" not in str(caught.value)


def test_an_unreachable_server_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(HandOffError, match=r"http://127\.0\.0\.1:9 rejected the checkpoint"):
        hand_over("http://127.0.0.1:9", finished_checkpoint(tmp_path / "lost"), "lost")
