"""Artifacts of a job, downloaded from a directory and from a bucket."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile

import pytest
from fastapi.testclient import TestClient

from app.domain.artifact import job_prefix
from app.domain.lifecycle import State
from app.services.resources import Resources
from tests.app.api.downloading import fetch
from tests.app.builders import in_state, queued


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


def test_report_exists_once_the_job_succeeded(client: TestClient, resources: Resources) -> None:
    waiting, done = queued(resources), in_state(resources, State.SUCCEEDED)
    early = client.get(f"/v1/jobs/{waiting.id}/report")
    assert (early.status_code, early.json()["code"]) == (404, "report_not_found")
    assert client.get(f"/v1/jobs/{done.id}/report").json()["params_after"] == 700
    result = client.get(f"/v1/jobs/{done.id}").json()["result"]
    assert result["perplexity_after"] == 12.0
    assert (result["kl"], result["top1_agreement"], result["domain"]) == (0.125, 0.75, "out")
    assert result["speedup"] == {"prefill": 1.3, "decode": 1.2}


def test_artifacts_are_downloaded_through_their_links(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    files = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"]
    assert [file["name"] for file in files] == [
        "code/mödel é.py",
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    for file in files:
        response = fetch(client, file["url"])
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith(file["media_type"])
        assert len(response.content) == file["bytes"]
        assert hashlib.sha256(response.content).hexdigest() == file["sha256"]


def test_downloads_honour_ranges(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    url = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"][3]["url"]
    part = fetch(client, url, headers={"range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == bytes(range(10, 20))
    assert part.headers["content-range"] == "bytes 10-19/1024"
    for header, first, last in (("bytes=1000-", 1000, 1023), ("bytes=-24", 1000, 1023)):
        end = fetch(client, url, headers={"range": header})
        assert (end.status_code, end.content) == (206, bytes(range(256))[first % 256 :])
        assert end.headers["content-range"] == f"bytes {first}-{last}/1024"
    outside = fetch(client, url, headers={"range": "bytes=5000-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */1024")
    head = fetch(client, url, "HEAD")
    assert (head.status_code, head.headers["content-length"]) == (200, "1024")
    head = fetch(client, url, "HEAD", headers={"range": "bytes=10-19"})
    assert (head.status_code, head.headers["content-length"], head.content) == (206, "10", b"")


def test_a_range_is_sent_only_of_the_file_that_the_client_has(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    file = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"][3]
    etag = fetch(client, file["url"]).headers["etag"]
    assert etag == f'"{file["sha256"]}"'
    wanted = {"range": "bytes=10-19"}
    assert fetch(client, file["url"], headers=wanted | {"if-range": etag}).status_code == 206
    for other in ('"other"', f"W/{etag}"):
        whole = fetch(client, file["url"], headers=wanted | {"if-range": other})
        assert (whole.status_code, len(whole.content)) == (200, 1024)


def test_downloads_have_a_file_name(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    files = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"]
    names = [fetch(client, file["url"]).headers["content-disposition"] for file in files[:2]]
    assert names == [
        "attachment; filename*=utf-8''m%C3%B6del%20%C3%A9.py",
        'attachment; filename="config.json"',
    ]


def test_forged_and_expired_links_are_rejected(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    url = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"][1]["url"]
    for forged in (
        url.replace("config.json", "manifest.json"),
        re.sub(r"expires=(\d)", r"expires=9\1", url),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        response = client.get(forged)
        assert (response.status_code, response.json()["code"]) == (403, "invalid_link")
    old = client.get(resources.signer.sign(job.id, "config.json", -10))
    assert old.status_code == 403
    assert "expired" in old.json()["detail"]
    gone = client.get(resources.signer.sign(job.id, "no-such-file", 60))
    assert (gone.status_code, gone.json()["code"]) == (404, "artifact_not_found")


def test_unfinished_job_has_no_artifacts(client: TestClient, resources: Resources) -> None:
    for state in (State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED):
        job = in_state(resources, state)
        assert client.get(f"/v1/jobs/{job.id}/artifacts").json() == {"data": [], "archive": None}


def test_deleting_a_job_removes_its_objects_and_its_links_return_404(
    client: TestClient, resources: Resources
) -> None:
    job, other = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    url = client.get(f"/v1/jobs/{job.id}/artifacts").json()["data"][0]["url"]
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert resources.store.keys(job_prefix(job)) == []
    assert len(resources.store.keys(job_prefix(other))) == 4
    assert client.get(url).status_code == 404


def test_all_files_are_downloaded_as_one_archive(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    listing = client.get(f"/v1/jobs/{job.id}/artifacts").json()
    archive = listing["archive"]
    response = client.get(archive["url"])
    assert response.headers["content-type"] == "application/zip"
    assert archive["name"] in response.headers["content-disposition"]
    assert int(response.headers["content-length"]) == len(response.content)
    head = client.head(archive["url"])
    assert (head.headers["content-length"], head.content) == (
        response.headers["content-length"],
        b"",
    )
    inside = archive["name"].removesuffix(".zip")
    with zipfile.ZipFile(io.BytesIO(response.content)) as opened:
        assert opened.testzip() is None
        digests = {
            name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()
        }
    assert digests == {f"{inside}/{file['name']}": file["sha256"] for file in listing["data"]}


def test_an_archive_requires_its_own_signed_link(client: TestClient, resources: Resources) -> None:
    first, second = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    url = client.get(f"/v1/jobs/{first.id}/artifacts").json()["archive"]["url"]
    for forged in (url.replace(first.id, second.id), re.sub(r"expires=(\d)", r"expires=9\1", url)):
        response = client.get(forged)
        assert (response.status_code, response.json()["code"]) == (403, "invalid_link")
    assert client.get(f"/v1/archives/{first.id}.zip").status_code == 422
    nothing = client.get(resources.signer.sign_archive(queued(resources).id, 60))
    assert (nothing.status_code, nothing.json()["code"]) == (404, "artifact_not_found")
