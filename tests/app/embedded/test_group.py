"""Crashed members are restarted, but not without limit, and all members are stopped together."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from app.embedded import group as group_module
from app.embedded.group import Group, GroupFailedError, Member, next_delay
from app.embedded.process import Command, ManagedProcess
from app.embedded.server_process import ServerProcess

SLEEPER = "import time; time.sleep(300)"


def member(directory: Path, name: str, source: str) -> Member:
    command = Command(
        name=name,
        arguments=[sys.executable, "-c", source],
        log=directory / f"{name}.log",
        cwd=directory,
    )
    return Member(name=name, start=lambda: ManagedProcess(command))


class DyingServer(ServerProcess):
    """A server that dies in its second and some further starts, before it is ready."""

    name = "server"
    start_seconds = 20.0

    def __init__(self, directory: Path, deaths: int) -> None:
        super().__init__(directory)
        self.starts = 0
        self._deaths = range(2, 2 + deaths)

    def _prepare(self) -> Command:
        self.starts += 1
        dies = self.starts in self._deaths
        source = "raise SystemExit('no memory')" if dies else SLEEPER
        return Command(
            name=self.name,
            arguments=[sys.executable, "-c", source],
            log=self.log,
            cwd=self.directory,
        )

    def _is_ready(self) -> bool:
        return self.starts not in self._deaths


def test_delays_grow_and_end_and_old_crashes_are_forgotten() -> None:
    delays = [next_delay(100.0, [100.0] * count) for count in range(1, 7)]
    assert delays[:5] == sorted(delay for delay in delays if delay is not None)
    assert delays[5] is None
    assert next_delay(10_000.0, [*[100.0] * 50, 10_000.0]) == delays[0]


def test_a_crashed_member_is_started_again(tmp_path: Path) -> None:
    reports: list[str] = []
    group = Group(reports.append)
    sleeper = member(tmp_path, "sleeper", SLEEPER)
    group.add(sleeper)
    first = sleeper.process
    assert first is not None
    first.stop()
    deadline = time.monotonic() + 20
    try:
        group.run(lambda: sleeper.process not in (None, first) or time.monotonic() > deadline)
        assert sleeper.process is not None
        assert sleeper.process.exit_code() is None
        assert reports == ["sleeper exited with code -15; restarting in 0.5 s"]
    finally:
        group.stop()
    assert sleeper.process is None


def test_a_server_that_dies_while_it_is_restarted_is_restarted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "_DELAYS", (0.0, 0.0))
    reports: list[str] = []
    group = Group(reports.append)
    server = DyingServer(tmp_path, deaths=1)
    served = Member(name=server.name, start=server.start, stop=server.stop)
    group.add(served)
    try:
        assert served.process is not None
        served.process.stop()
        deadline = time.monotonic() + 20
        group.run(lambda: server.starts == 3 or time.monotonic() > deadline)
        assert served.process is not None
        assert served.process.exit_code() is None
        assert reports == [
            "server exited with code -15; restarting in 0 s",
            "server did not restart; restarting in 0 s",
        ]
    finally:
        group.stop()


def test_a_server_that_never_restarts_ends_the_group_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "_DELAYS", (0.0, 0.0))
    group = Group(lambda _: None)
    server = DyingServer(tmp_path, deaths=10)
    group.add(Member(name=server.name, start=server.start, stop=server.stop))
    try:
        assert server.process is not None
        server.process.stop()
        with pytest.raises(GroupFailedError, match=r"server exited 3 times(.|\n)*no memory"):
            group.run(lambda: False)
    finally:
        group.stop()


def test_a_member_that_keeps_crashing_ends_the_group_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "_DELAYS", (0.0, 0.0))
    group = Group(lambda _: None)
    group.add(member(tmp_path, "broken", "raise SystemExit('no disk')"))
    with pytest.raises(GroupFailedError, match=r"broken exited 3 times(.|\n)*no disk"):
        group.run(lambda: False)
    group.stop()


def test_all_members_are_stopped_even_when_stopping_one_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    group = Group(lambda _: None)
    first = member(tmp_path, "first", SLEEPER)
    group.add(first)
    process = first.process
    assert process is not None
    stubborn = member(tmp_path, "stubborn", "pass")
    stubborn.stop = fail
    group.add(stubborn)
    assert stubborn.process is not None
    stubborn.process.wait(20)
    with pytest.raises(ExceptionGroup, match="could not be stopped"):
        group.stop()
    assert process.exit_code() is not None
