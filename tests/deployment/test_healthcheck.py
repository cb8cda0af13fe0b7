"""`intraslice healthcheck` beside the real processes; the image and compose use it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from app.adapters.process_state import StateFile, process_states, state_file
from app.settings import Settings
from tests.app.environment import environment_of
from tests.deployment.compose import REPOSITORY, filled_environment, load

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
COMMAND = [sys.executable, "-P", "-m", "app.cli.main"]
Ended = subprocess.CompletedProcess[str]
PAUSE_SECONDS = 0.5
"""Time between two checks, each of which starts a process."""


@contextmanager
def running(settings: Settings, command: str) -> Iterator[subprocess.Popen[bytes]]:
    log = settings.data_dir.with_name(f"{command}.log")
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*COMMAND, command],
            env={**os.environ, **environment_of(settings), "INTRASLICE_PORT": "0"},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def check(settings: Settings, *options: str) -> Ended:
    environment = {**os.environ, "INTRASLICE_DATA_DIR": str(settings.data_dir)}
    return subprocess.run(
        [*COMMAND, "healthcheck", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def healthy_within(settings: Settings, seconds: float, *options: str) -> Ended:
    deadline = time.monotonic() + seconds
    while True:
        ended = check(settings, *options)
        if ended.returncode == 0:
            return ended
        assert time.monotonic() < deadline, (ended.stdout, ended.stderr)
        time.sleep(PAUSE_SECONDS)


def unhealthy_within(settings: Settings, seconds: float, *options: str) -> Ended:
    deadline = time.monotonic() + seconds
    while True:
        ended = check(settings, *options)
        if ended.returncode != 0:
            return ended
        assert time.monotonic() < deadline, (ended.stdout, ended.stderr)
        time.sleep(PAUSE_SECONDS)


def test_each_process_is_healthy_until_it_stops_working(settings: Settings) -> None:
    with ExitStack() as stack:
        processes = {}
        for command in ("serve", "worker", "scheduler"):
            directory = settings.data_dir.with_name(command)
            changes = {"data_dir": directory, "artifact_store": settings.store_url}
            own = settings.model_copy(update=changes)
            processes[command] = (own, stack.enter_context(running(own, command)))
        for command, (own, process) in processes.items():
            assert (
                healthy_within(own, 120).stdout == f"{command} (process {process.pid}): healthy\n"
            )
        api, process = processes["serve"]
        assert check(api, "--ready").returncode == 0
        process.send_signal(signal.SIGSTOP)
        ended = check(api)
        assert (ended.returncode, "/livez does not answer" in ended.stdout) == (1, True)
        process.send_signal(signal.SIGCONT)
        stopped = [processes[command] for command in ("worker", "scheduler")]
        for _, process in stopped:
            process.send_signal(signal.SIGSTOP)
        for own, _ in stopped:
            ended = unhealthy_within(own, 60, "--max-age", "4")
            assert re.search(r"the last heartbeat was \d+ s ago, more than 4 s", ended.stdout)
        for _, process in stopped:
            process.send_signal(signal.SIGCONT)
        for own, _ in stopped:
            healthy_within(own, 60, "--max-age", "4")
        for command in ("worker", "scheduler"):
            own, process = processes[command]
            process.kill()
            process.wait()
            ended = check(own)
            assert (ended.returncode, "is not running" in ended.stdout) == (1, True), ended.stdout
        process = processes["serve"][1]
        process.terminate()
        assert process.wait(60) == 0
        # It has ended in good order, so its state is gone.
        ended = check(api)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert str(api.data_dir) in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_migration_is_healthy_while_it_runs(settings: Settings) -> None:
    settings.data_dir.mkdir()
    StateFile(settings.data_dir, "migrate").write()
    (path,) = settings.data_dir.glob("processes/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heartbeat": -1e6}))
    ended = check(settings)
    assert (ended.returncode, ended.stdout) == (0, f"migrate (process {os.getpid()}): healthy\n")
    path.unlink()
    with running(settings, "migrate") as process:
        assert process.wait(60) == 0
    assert list(settings.data_dir.glob("processes/*")) == []


def test_a_new_process_removes_the_state_of_a_killed_one(tmp_path: Path) -> None:
    StateFile(tmp_path, "worker").write()
    (path,) = tmp_path.glob("processes/*.json")
    text = path.read_text()
    dead = path.with_name(path.name.replace(str(os.getpid()), "dead"))
    for command, file in (("worker", dead), ("serve", path)):
        state = {"command": command, "pid": 2**22 + 1}
        file.write_text(json.dumps(json.loads(text) | state))
    with state_file(tmp_path, "worker") as state:
        state.write()
        assert [item.pid for item in process_states(tmp_path)] == [os.getpid()]
    assert process_states(tmp_path) == []


def test_other_hosts_that_share_the_directory_are_not_checked(settings: Settings) -> None:
    directory = settings.data_dir / "processes"
    directory.mkdir(parents=True)
    state = {"command": "worker", "pid": 2**22 + 1, "heartbeat": 0.0, "url": ""}
    (directory / "another-host-7.json").write_text(json.dumps(state))
    ended = check(settings)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_the_check_starts_without_server_and_engine() -> None:
    code = (
        "import sys, app.cli.main, app.cli.healthcheck, app.adapters.process_state, app.settings; "
        "print([name for name in ('torch', 'fastapi', 'sqlalchemy', 'structlog', 'numpy')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_image_and_compose_use_the_check() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert 'CMD ["intraslice", "healthcheck"]\n' in dockerfile
    assert "INTRASLICE_HOST=0.0.0.0" in dockerfile
    services = load(filled_environment())["services"]
    tests = {
        name: services[name]["healthcheck"].get("test") for name in ("api", "worker", "scheduler")
    }
    plain = ["CMD", "intraslice", "healthcheck"]
    assert tests == {"api": [*plain, "--ready"], "worker": plain, "scheduler": plain}
