"""Directories and buckets store, list and delete objects in the same way."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Literal

import pytest

from app.adapters.storage import ArtifactStore
from app.domain.errors import ArtifactNotFoundError, LeaseLostError, StoreUnavailableError
from app.embedded.seaweed import EmbeddedS3


@pytest.fixture
def directory(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "a store %20 é").as_uri())


@pytest.fixture
def store(each_store: str, directory: ArtifactStore) -> ArtifactStore:
    return ArtifactStore(each_store) if each_store else directory


def test_objects_have_the_content_that_was_written(store: ArtifactStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100_000  # several parts
    (tmp_path / "file").write_bytes(content)
    store.put_file("a/b c/é.bin", tmp_path / "file")
    assert store.sha256("a/b c/é.bin") == hashlib.sha256(content).hexdigest()
    store.get_file("a/b c/é.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} - {"a store %20 é"} == {"file", "copy"}


def test_every_part_of_an_object_is_reported(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(20_000_000))
    (tmp_path / "empty").touch()
    sent: list[int] = []
    read: list[int] = []
    store.put_file("a/file", tmp_path / "file", on_bytes=sent.append)
    store.sha256("a/file", read.append)
    assert sum(sent) == sum(read) == 20_000_000
    assert len(sent) == 3
    store.put_file("a/empty", tmp_path / "empty")
    assert store.read("a/empty") == b""


def test_an_upload_that_is_stopped_leaves_no_object(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(20_000_000))

    def stop(_count: int) -> None:
        raise LeaseLostError

    with pytest.raises(LeaseLostError):
        store.put_file("a/file", tmp_path / "file", on_bytes=stop)
    assert store.keys("a/") == []


def test_new_objects_overwrite_nothing(store: ArtifactStore) -> None:
    store.put_new("a/manifest.json", b"1")
    with pytest.raises(StoreUnavailableError, match=r"store (directory /|s3://).* failed on a/"):
        store.put_new("a/manifest.json", b"2")
    assert store.sha256("a/manifest.json") == hashlib.sha256(b"1").hexdigest()


def test_a_new_object_may_be_written_again_with_the_same_content(store: ArtifactStore) -> None:
    """The answer to the first request was lost."""
    store.put_new("a/manifest.json", b"1")
    store.put_new("a/manifest.json", b"1")
    assert store.sha256("a/manifest.json") == hashlib.sha256(b"1").hexdigest()


def test_prefixes_end_at_slashes(store: ArtifactStore) -> None:
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a"):
        store.put_new(key, b"x")
    assert sorted(store.keys("jobs/1/")) == ["jobs/1/a", "jobs/1/b/c"]
    store.delete(store.keys("jobs/1/"))
    assert store.keys("jobs/") == ["jobs/10/a"]
    store.delete([])


def test_a_missing_object_raises_not_found_and_leaves_no_file(
    store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactNotFoundError):
        store.sha256("nothing")
    with pytest.raises(ArtifactNotFoundError):
        store.get_file("nothing", tmp_path / "copy")
    assert not any(tmp_path.glob("*copy*"))
    assert store.keys("nothing/") == []


def test_a_missing_local_file_raises_not_found(directory: ArtifactStore) -> None:
    with pytest.raises(ArtifactNotFoundError):
        directory.local_path("nothing")


def test_vanished_store_is_not_ready(tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    store.check()
    (tmp_path / "store").rmdir()
    with pytest.raises(StoreUnavailableError):
        store.check()


def test_a_directory_cannot_presign_urls(directory: ArtifactStore) -> None:
    with pytest.raises(StoreUnavailableError):
        directory.presigned_url("a", 60)


def test_files_of_a_directory_always_go_through_the_api(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri(), direct=True)
    assert (store.is_direct, store.origin) == (False, None)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_links_are_signed_for_the_public_endpoint(
    variable: str, method: Literal["GET", "HEAD", "PUT"], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        variable: "http://s3:8333",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }.items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore(
        "s3://bucket/prefix", public_endpoint="https://files.example.com", direct=True
    )
    link = store.presigned_url("a/b", 60, method)
    assert link.startswith("https://files.example.com/bucket/prefix/a/b?X-Amz-Algorithm=")
    assert store.origin == "https://files.example.com"


def test_a_stream_has_the_bytes_of_its_range(store: ArtifactStore) -> None:
    async def read(key: str, start: int, end: int) -> list[bytes]:
        return [chunk async for chunk in store.stream(key, start, end)]

    content = bytes(range(256)) * 20_000  # several windows
    store.put_new("a", content)
    for start, end in ((0, len(content)), (5, 7), (2**21 - 1, 2**21 + 1), (3, 3)):
        chunks = asyncio.run(read("a", start, end))
        assert b"".join(chunks) == content[start:end]
        assert max(map(len, chunks), default=0) <= 2**21
    with pytest.raises(ArtifactNotFoundError):
        asyncio.run(read("nothing", 0, 1))


def test_a_store_that_does_not_exist_is_named(directory: ArtifactStore, tmp_path: Path) -> None:
    place = tmp_path / "a store %20 é"
    place.rmdir()
    with pytest.raises(StoreUnavailableError, match=f"directory {place} does not exist"):
        directory.check()


@pytest.mark.object_store
def test_a_bucket_that_does_not_exist_is_named(
    s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore("s3://no-such-bucket", endpoint=s3_server.endpoint)
    place = f"s3://no-such-bucket at {s3_server.endpoint} does not exist"
    for call in (store.check, lambda: store.sizes("jobs/a/"), lambda: store.directories("jobs/")):
        with pytest.raises(StoreUnavailableError, match=place):
            call()
