"""Valkey starts, keeps its data and ends with its starter."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import redis
from kombu import Connection

from app.embedded.lock import DirectoryInUseError
from app.embedded.valkey import EmbeddedValkey
from tests.app.embedded.processes import descendants, kill, run_script, wait_until_dead

pytestmark = pytest.mark.broker

KEEPER = """
import sys, time
from pathlib import Path
from app.embedded.valkey import EmbeddedValkey
server = EmbeddedValkey(Path(sys.argv[1]))
server.start()
print(server.redis_url, flush=True)
time.sleep(300)
"""


def test_the_urls_for_celery_and_redis_reach_the_same_server(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "vk") as server:
        with Connection(server.url) as broker, broker.SimpleQueue("letters") as queue:
            queue.put({"number": 1})
        with redis.Redis.from_url(server.redis_url) as client:
            assert client.llen("letters") == 1


def test_data_survive_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2):
        with (
            EmbeddedValkey(tmp_path / "vk") as server,
            redis.Redis.from_url(server.redis_url) as it,
        ):
            assert it.incr("starts") == expected
            assert server.process is not None
            process = psutil.Process(server.process.pid)
        assert wait_until_dead([process], 5) == []


def test_the_server_ends_with_its_starter_and_recovers_after_a_kill(tmp_path: Path) -> None:
    for sudden in (False, True):
        keeper = run_script(KEEPER, str(tmp_path / "vk"))
        assert keeper.stdout is not None
        with redis.Redis.from_url(keeper.stdout.readline().strip()) as client:
            client.incr("visits")
            client.execute_command("WAITAOF", 1, 0, 5000)
        servers = descendants(keeper.pid)
        assert servers
        if sudden:
            for process in servers:
                process.kill()
        kill(keeper)
        assert wait_until_dead(servers, 10) == []
    with EmbeddedValkey(tmp_path / "vk") as server, redis.Redis.from_url(server.redis_url) as it:
        assert it.get("visits") == b"2"


def test_a_directory_in_use_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.embedded.server_process._PREDECESSOR_SECONDS", 0.1)
    with EmbeddedValkey(tmp_path / "vk"), pytest.raises(DirectoryInUseError):
        EmbeddedValkey(tmp_path / "vk").start()
