"""Listing of server directories: pages, marks, and nothing outside of the allowed roots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.adapters import local_paths
from app.domain.principal import Scope
from tests.app.builders import bearer, key_of, weights_on_disk

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
URL = "/v1/server-paths"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The allowed directory of the client, with models, a secret beside it, and links to it."""
    outside = tmp_path / "outside"
    weights_on_disk(outside / "secret")
    (outside / "config.json").write_text("{}")
    root = tmp_path / "models"
    weights_on_disk(root / "team" / "llama")
    weights_on_disk(root / ".hidden")
    (root / "empty").mkdir()
    (root / "small.gguf").write_bytes(b"GGUF")
    (root / "notes.txt").write_text("not a model")
    (root / "escape").symlink_to(outside)
    (root / "escape.gguf").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root / "loop")
    (root / "veiled").symlink_to(root / ".hidden")
    (root / "alias").symlink_to(root / "team" / "llama")
    (root / "borrowed").mkdir()
    (root / "borrowed" / "config.json").symlink_to(outside / "config.json")
    return root


def listed(client: TestClient, **query: Any) -> dict[str, Any]:
    response = client.get(URL, params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_the_allowed_directories_come_first(client: TestClient, models: Path) -> None:
    top = listed(client)
    assert (top["path"], top["parent"], top["has_more"]) == (None, None, False)
    (root,) = top["data"]
    assert (root["name"], root["path"], root["type"]) == (str(models), str(models), "directory")
    assert listed(client, use="data")["data"] == [], "the directory of texts does not exist"


def test_models_are_marked_and_neither_links_out_nor_hidden_files_are_listed(
    client: TestClient, models: Path
) -> None:
    page = listed(client, path=str(models))
    marks = {entry["name"]: (entry["type"], entry["contents"]) for entry in page["data"]}
    assert marks == {
        "alias": ("directory", "model"),
        "borrowed": ("directory", None),
        "empty": ("directory", None),
        "small.gguf": ("file", "model"),
        "team": ("directory", None),
    }
    assert page["parent"] is None
    below = listed(client, path=str(models / "team"))
    (entry,) = below["data"]
    assert entry["contents"] == "model"
    assert below["parent"] == str(models)
    source = {"source": "path", "ref": entry["path"]}
    assert client.post("/v1/jobs", json={"model": source}).status_code == 202


def test_texts_are_marked_by_their_format(client: TestClient, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.jsonl", "b.txt.gz", "c.bin", "d.gguf"):
        (texts / name).write_bytes(b"12345")
    page = listed(client, use="data", path=str(texts))
    assert [(entry["name"], entry["bytes"]) for entry in page["data"]] == [
        ("a.jsonl", 5),
        ("b.txt.gz", 5),
    ]
    assert {entry["contents"] for entry in page["data"]} == {"dataset"}


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/etc", "{root}/..", "{root}/../outside", "{root}/team/../../outside", "models"),
        *(
            "{root}/escape",
            "{root}/escape/secret",
            "{root}/loop",
            "{root}/.hidden",
            "{root}/veiled",
        ),
        *("{root}\0", "{root}-other", "~", "{root}/" + "x" * 300),
    ],
)
def test_directories_elsewhere_are_never_listed(
    client: TestClient, models: Path, path: str
) -> None:
    models.with_name("models-other").mkdir()
    response = client.get(URL, params={"path": path.format(root=models)})
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("query:path", "path_not_allowed")
    assert "secret" not in response.text


def test_a_directory_of_models_is_not_listed_as_one_of_texts(
    client: TestClient, models: Path
) -> None:
    assert client.get(URL, params={"use": "data", "path": str(models)}).status_code == 422


def test_a_file_and_what_does_not_exist_are_not_found(client: TestClient, models: Path) -> None:
    for name in ("notes.txt", "absent"):
        response = client.get(URL, params={"path": str(models / name)})
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_pages_hold_every_entry_once(client: TestClient, models: Path) -> None:
    names: list[str] = []
    query: dict[str, Any] = {"path": str(models), "limit": 2}
    while True:
        page = listed(client, **query)
        assert len(page["data"]) <= 2
        names += [entry["name"] for entry in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["next_cursor"]
    assert names == ["alias", "borrowed", "empty", "small.gguf", "team"]


@pytest.mark.parametrize("cursor", ["!", "", "Li4vb3V0c2lkZQ"])
def test_other_cursors_are_rejected(client: TestClient, models: Path, cursor: str) -> None:
    response = client.get(URL, params={"path": str(models), "after": cursor})
    assert response.status_code == 422
    assert response.json()["errors"][0]["code"] == "bad_cursor"


def test_a_directory_of_too_many_files_is_rejected(
    client: TestClient, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_paths, "MOST_SCANNED", 3)
    response = client.get(URL, params={"path": str(models)})
    assert response.status_code == 422
    assert "more than 3 files" in response.json()["errors"][0]["message"]


def test_a_key_is_required(closed: TestClient, models: Path) -> None:
    assert closed.get(URL, params={"path": str(models)}).status_code == 401
    reader = key_of(closed.app.state.resources, Scope.READ, "search")  # type: ignore[attr-defined]
    response = closed.get(URL, params={"path": str(models)}, headers=bearer(reader))
    assert response.status_code == 200
