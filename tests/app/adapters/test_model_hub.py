"""Checkpoints are pushed completely to a Hub by its real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from app.adapters.finished_checkpoints import read_facts
from app.adapters.model_hub import push_checkpoint
from app.domain.errors import HandOffError, RepositoryTakenError
from app.domain.registry_hand_off import HandedOff
from tests.app.checkpoints import contents, finished_checkpoint
from tests.app.hub_server import Hub, hub_server

# The client's own.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # As HF_HUB_DISABLE_XET=1 does: large files go by LFS.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_server() as server:
        yield server


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return finished_checkpoint(tmp_path / "small")


def push(hub: Hub, checkpoint: Path, **changes: Any) -> HandedOff:
    facts, _ = read_facts(checkpoint)
    to: dict[str, Any] = {
        "repository": "acme/small",
        "endpoint": hub.url,
        "token": hub.token,
    } | changes
    return push_checkpoint(checkpoint, facts, **to)


def test_all_files_arrive_in_one_commit_that_names_the_manifest(hub: Hub, checkpoint: Path) -> None:
    done = push(hub, checkpoint)
    repository = hub.repositories["acme/small"]
    assert repository.files == contents(checkpoint)
    assert repository.private
    (commit,) = repository.commits
    assert read_facts(checkpoint)[0].manifest_sha256 in commit
    assert done.url == f"{hub.url}/acme/small"
    assert any(request.startswith("PUT /objects/") for request in hub.requests)


def test_an_existing_repository_gets_another_commit(hub: Hub, checkpoint: Path) -> None:
    push(hub, checkpoint)
    push(hub, checkpoint)
    assert len(hub.repositories["acme/small"].commits) == 2


def test_a_repository_with_files_of_others_is_not_written_to(hub: Hub, checkpoint: Path) -> None:
    push(hub, checkpoint, only_results=True)
    push(hub, checkpoint, only_results=True)
    repository = hub.repositories["acme/small"]
    assert len(repository.commits) == 2
    repository.files = {"model.safetensors": b"of the company"}
    with pytest.raises(RepositoryTakenError, match="acme/small contains files"):
        push(hub, checkpoint, only_results=True)
    assert repository.files == {"model.safetensors": b"of the company"}


def test_the_error_for_a_hub_without_xet_names_the_environment_variable(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HandOffError, match="HF_HUB_DISABLE_XET=1"):
        push(hub, checkpoint)


def test_an_interrupted_upload_commits_nothing(hub: Hub, checkpoint: Path) -> None:
    hub.takes_objects = False
    with pytest.raises(HandOffError, match="rejected the checkpoint"):
        push(hub, checkpoint)
    assert hub.repositories["acme/small"].commits == []


def test_a_wrong_token_an_invalid_name_and_an_unreachable_hub_raise_the_same_error(
    hub: Hub, checkpoint: Path
) -> None:
    with pytest.raises(HandOffError, match="401"):
        push(hub, checkpoint, token="hf_wrong")
    with pytest.raises(HandOffError, match="rejected the checkpoint"):
        push(hub, checkpoint, repository="acme/../etc")
    with pytest.raises(HandOffError, match="rejected the checkpoint"):
        push(hub, checkpoint, endpoint="http://127.0.0.1:9")
    assert hub.repositories == {}
