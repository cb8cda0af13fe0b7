"""Directories and buckets store, list and delete objects in the same way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from app.adapters.storage import ArtifactStore
from app.domain.errors import ArtifactNotFoundError, StoreUnavailableError


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


def test_new_objects_overwrite_nothing(store: ArtifactStore) -> None:
    store.put_new("a/manifest.json", b"1")
    with pytest.raises(StoreUnavailableError, match=r"(directory /|at http://127).* failed on a/"):
        store.put_new("a/manifest.json", b"2")
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
