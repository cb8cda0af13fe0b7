"""A crashed member is started again, not for ever, and all end together."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from app.embedded import restarts
from app.embedded.errors import GroupFailedError
from app.embedded.group import Group, Member
from app.embedded.process import Command, ManagedProcess
from app.embedded.restarts import next_delay

SLEEPER = "import time; time.sleep(300)"


def member(directory: Path, name: str, source: str) -> Member:
    command = Command(
        name=name,
        arguments=[sys.executable, "-c", source],
        log=directory / f"{name}.log",
        cwd=directory,
    )
    return Member(name=name, start=lambda: ManagedProcess(command))


def test_delays_grow_and_end_and_old_crashes_are_forgotten() -> None:
    delays = [next_delay(100.0, [100.0] * count) for count in range(1, 7)]
    assert delays[:5] == sorted(delay for delay in delays if delay is not None)
    assert delays[5] is None
    assert next_delay(10_000.0, [*[100.0] * 50, 10_000.0]) == delays[0]


def test_a_crashed_member_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    group = Group(said.append)
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
        assert said == ["sleeper ended with exit code -15; starting it again in 0.5 s"]
    finally:
        group.stop()
    assert sleeper.process is None


def test_a_member_that_keeps_crashing_ends_the_group_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_DELAYS", (0.0, 0.0))
    group = Group(lambda _: None)
    group.add(member(tmp_path, "broken", "raise SystemExit('no disk')"))
    with pytest.raises(GroupFailedError, match=r"broken ended 3 times(.|\n)*no disk"):
        group.run(lambda: False)
    group.stop()


def test_all_members_end_even_when_ending_one_fails(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("no")

    group = Group(lambda _: None)
    first = member(tmp_path, "first", SLEEPER)
    group.add(first)
    process = first.process
    assert process is not None
    stubborn = member(tmp_path, "stubborn", "pass")
    stubborn.stop = refuse
    group.add(stubborn)
    assert stubborn.process is not None
    stubborn.process.wait(20)
    with pytest.raises(ExceptionGroup, match="did not end"):
        group.stop()
    assert process.exit_code() is not None
