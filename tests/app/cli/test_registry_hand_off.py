"""`intraslice register` and `push` of intact and damaged checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from app.cli.main import app
from tests.app.checkpoints import contents, finished_checkpoint
from tests.app.hub_server import Hub, hub_server

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return finished_checkpoint(tmp_path / "small")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_server() as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_push_prints_the_url_of_the_checkpoint(checkpoint: Path, hub: Hub) -> None:
    done = run("push", checkpoint, "--repo", "acme/small", "--endpoint", hub.url, "--no-private")
    assert done.exit_code == 0, done.output
    assert f"{hub.url}/acme/small" in done.output
    assert hub.repositories["acme/small"].files == contents(checkpoint)
    assert not hub.repositories["acme/small"].private


def test_a_damaged_checkpoint_is_not_pushed(checkpoint: Path, hub: Hub) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    done = run("push", checkpoint, "--repo", "acme/small", "--endpoint", hub.url)
    assert done.exit_code == 1
    assert "model.safetensors is changed" in done.output
    assert hub.requests == []


def test_a_rejection_by_the_hub_is_an_error_in_one_line(
    checkpoint: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = run("push", checkpoint, "--repo", "acme/small", "--endpoint", hub.url)
    assert done.exit_code == 1
    assert done.output.startswith("error: the Hub at")
    assert "hf_wrong" not in done.output


def test_an_invalid_name_is_bad_input(checkpoint: Path) -> None:
    done = run("register", checkpoint, "--mlflow", "http://127.0.0.1:9", "--name", "{secret}")
    assert done.exit_code == 2
    assert "--name" in done.output
