"""The directory store keeps, lists and forgets objects."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from app.adapters.storage import ArtifactStore
from app.domain.errors import ArtifactNotFoundError, StoreUnavailableError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "a store %20 é").as_uri())


def test_objects_are_what_was_written(store: ArtifactStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100_000  # several parts
    (tmp_path / "file").write_bytes(content)
    store.put_file("a/b c/é.bin", tmp_path / "file")
    assert store.sha256("a/b c/é.bin") == hashlib.sha256(content).hexdigest()
    path = store.local_path("a/b c/é.bin")
    assert path is not None
    assert path.read_bytes() == content


def test_new_objects_overwrite_nothing(store: ArtifactStore) -> None:
    store.put_new("a/manifest.json", b"1")
    with pytest.raises(StoreUnavailableError):
        store.put_new("a/manifest.json", b"2")
    path = store.local_path("a/manifest.json")
    assert path is not None
    assert path.read_bytes() == b"1"


def test_prefixes_end_at_slashes(store: ArtifactStore) -> None:
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a"):
        store.put_new(key, b"x")
    assert sorted(store.keys("jobs/1/")) == ["jobs/1/a", "jobs/1/b/c"]
    store.delete(store.keys("jobs/1/"))
    assert store.keys("jobs/") == ["jobs/10/a"]
    store.delete([])


def test_what_is_not_there_is_said_so(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactNotFoundError):
        store.sha256("nothing")
    with pytest.raises(ArtifactNotFoundError):
        store.local_path("nothing")
    assert store.keys("nothing/") == []


def test_vanished_store_is_not_ready(tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    store.check()
    (tmp_path / "store").rmdir()
    with pytest.raises(StoreUnavailableError):
        store.check()


def test_directory_has_no_urls_of_its_own(store: ArtifactStore) -> None:
    with pytest.raises(StoreUnavailableError):
        store.presigned_url("a", 60)
