"""PostgreSQL starts, keeps its data, recovers from kills and ends with its starter."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import psutil
import psycopg
import pytest

from app.embedded import postgres_binaries
from app.embedded.lock import DirectoryInUseError
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.process import EmbeddedError, Owner
from app.embedded.server_process import ServerStartError
from tests.app.embedded.processes import descendants, kill, run_script, wait_until_dead

pytestmark = pytest.mark.postgres

KEEPER = """
import sys, time
from pathlib import Path
from app.embedded.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.url, flush=True)
time.sleep(300)
"""


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)


def test_data_survive_a_restart_and_no_process_is_left_running(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        with connect(server.url) as connection:
            connection.execute("CREATE TABLE note (text text)")
            connection.execute("INSERT INTO note VALUES ('grüße')")
        assert server.process is not None
        processes = descendants(server.process.pid) | {psutil.Process(server.process.pid)}
        sockets = server.socket_directory
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert wait_until_dead(processes, 5) == []
    assert not sockets.exists()
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server, connect(server.url) as again:
        assert again.execute("SELECT text FROM note").fetchall() == [("grüße",)]
        assert again.execute("SHOW listen_addresses").fetchone() == ("",)


def test_the_server_ends_with_a_killed_starter_and_keeps_committed_rows(tmp_path: Path) -> None:
    keeper = run_script(KEEPER, str(tmp_path / "pg"))
    assert keeper.stdout is not None
    url = keeper.stdout.readline().strip()
    with connect(url) as connection:
        connection.execute("CREATE TABLE note (number int)")
        connection.execute("INSERT INTO note VALUES (7)")
    servers = descendants(keeper.pid)
    kill(keeper)
    assert wait_until_dead(servers, 10) == []
    with EmbeddedPostgres(tmp_path / "pg") as server, connect(server.url) as connection:
        assert connection.execute("SELECT number FROM note").fetchall() == [(7,)]


def test_the_server_recovers_after_all_processes_were_killed_at_once(tmp_path: Path) -> None:
    keeper = run_script(KEEPER, str(tmp_path / "pg"))
    assert keeper.stdout is not None
    url = keeper.stdout.readline().strip()
    with connect(url) as connection:
        connection.execute("CREATE TABLE note AS SELECT generate_series(1, 5000) AS number")
    servers = descendants(keeper.pid)
    for process in servers:
        # The others end with the postmaster, possibly before they are killed here.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    kill(keeper)
    assert wait_until_dead(servers, 10) == []
    # The pid file of a dead server, with the pid reused by another process of this user.
    stale = tmp_path / "pg" / "data" / "postmaster.pid"
    lines = stale.read_text().splitlines()
    stale.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    with EmbeddedPostgres(tmp_path / "pg") as server, connect(server.url) as connection:
        assert connection.execute("SELECT count(*) FROM note").fetchone() == (5000,)


def test_a_partial_cluster_is_created_again(tmp_path: Path) -> None:
    fresh = tmp_path / "pg" / "data.new"
    fresh.mkdir(parents=True)
    (fresh / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server, connect(server.url) as it:
        assert it.execute("SELECT 1").fetchone() == (1,)
    assert not fresh.exists()


def test_a_directory_in_use_is_rejected_and_its_server_keeps_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.embedded.server_process._PREDECESSOR_SECONDS", 0.1)
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        with pytest.raises(DirectoryInUseError):
            EmbeddedPostgres(tmp_path / "pg", durable=False).start()
        with connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_failed_start_reports_the_reason_and_releases_the_directory(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    with server:
        pass
    configuration = tmp_path / "pg" / "data" / "postgresql.conf"
    original = configuration.read_text()
    configuration.write_text(original + "\nno_such_setting = 1\n")
    with pytest.raises(ServerStartError, match="no_such_setting"):
        server.start()
    configuration.write_text(original)
    with server, connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
class TestAsRoot:
    def test_the_server_runs_as_nobody_below_a_private_directory(self, tmp_path: Path) -> None:
        (tmp_path / "private").mkdir(mode=0o700)
        with EmbeddedPostgres(tmp_path / "private" / "pg", durable=False) as server:
            assert server.process is not None
            assert psutil.Process(server.process.pid).uids().effective == 65534
            assert (tmp_path / "private" / "pg" / "data").stat().st_uid == 65534

    def test_unreachable_programs_are_copied_once_and_a_damaged_copy_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres_binaries, "is_reachable", lambda *_: False)
        cache = tmp_path / "cache"
        cache.mkdir()
        monkeypatch.setattr(postgres_binaries, "_private_cache", lambda: cache)
        first = postgres_binaries.bin_directory(Owner(uid=65534, gid=65534))
        assert (first / "postgres").stat().st_mode & stat.S_IXOTH
        made = first.stat().st_ino
        assert postgres_binaries.bin_directory(Owner(uid=65534, gid=65534)) == first
        assert first.stat().st_ino == made
        (first / "initdb").unlink()
        assert postgres_binaries.bin_directory(Owner(uid=65534, gid=65534)) == first
        assert (first / "initdb").exists()
        assert [entry.name for entry in cache.iterdir() if entry.name.startswith(".")] == []

    def test_programs_planted_by_another_user_are_never_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planted = tmp_path / f"intraslice-programs-{os.geteuid()}"
        planted.mkdir()
        os.chown(planted, 65534, 65534)
        monkeypatch.setattr(postgres_binaries, "_CACHE_PARENT", tmp_path)
        with pytest.raises(EmbeddedError, match="another user owns it"):
            postgres_binaries._private_cache()
        planted.rmdir()
        made = postgres_binaries._private_cache()
        assert postgres_binaries._private_cache() == made
