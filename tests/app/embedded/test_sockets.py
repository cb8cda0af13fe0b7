"""Socket directories are private, short and never owned by another user."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from app.embedded import sockets


def test_the_directory_is_private_and_the_path_fits(tmp_path: Path) -> None:
    long_directory = tmp_path / ("x" * 120)
    long_directory.mkdir()
    made = sockets.make_socket_directory(long_directory)
    try:
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        assert len(os.fsencode(made / ".s.PGSQL.5432.lock")) <= 107
    finally:
        made.rmdir()


def test_stale_sockets_are_removed_and_the_directory_is_reused(tmp_path: Path) -> None:
    made = sockets.make_socket_directory(tmp_path)
    (made / ".s.PGSQL.5432").touch()
    again = sockets.make_socket_directory(tmp_path)
    assert again == made
    assert list(again.iterdir()) == []
    again.rmdir()


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
        _plant_and_check(Path(short), tmp_path, monkeypatch)


def _plant_and_check(first_choice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(first_choice))
    server = tmp_path / "server"
    server.mkdir()
    made = sockets.make_socket_directory(server)
    assert made.parent == first_choice
    made.rmdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    made.symlink_to(precious)
    elsewhere = sockets.make_socket_directory(server)
    assert elsewhere.parent != first_choice
    assert (precious / "file").exists()
    elsewhere.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_directory_below_a_private_one_is_not_reachable_for_others(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "open").mkdir(parents=True)
    private.chmod(0o700)
    assert not sockets.is_reachable(private / "open", 65534)
    assert sockets.is_reachable(Path("/tmp"), 65534)
