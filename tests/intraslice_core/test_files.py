"""Files are written atomically and identified by digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from intraslice_core.files import atomic_file, combined_sha256, file_sha256


def test_file_gets_its_name_only_when_complete(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "file"
    with atomic_file(destination) as partial:
        partial.write_text("content")
        assert not destination.exists()
    assert destination.read_text() == "content"
    assert list(destination.parent.iterdir()) == [destination]


def test_failure_keeps_the_former_content_and_no_partial_file(tmp_path: Path) -> None:
    destination = tmp_path / "file"
    destination.write_text("before")

    def interrupted() -> None:
        with atomic_file(destination) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert destination.read_text() == "before"
    assert list(tmp_path.iterdir()) == [destination]


def test_digests_depend_on_names_and_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert file_sha256(first) == hashlib.sha256(b"1").hexdigest()
    assert combined_sha256([first, second]) == combined_sha256([second, first])
    both = combined_sha256([first, second])
    second.rename(tmp_path / "c")
    assert combined_sha256([first, tmp_path / "c"]) != both
