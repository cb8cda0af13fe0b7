"""Several processes as one: a crashed member is started again, and all end together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.embedded.errors import GroupFailedError
from app.embedded.process import ManagedProcess
from app.embedded.restarts import next_delay

_POLL_SECONDS = 0.2

RestartPolicy = Callable[[float, Sequence[float]], float | None]
"""From now and the times of all crashes: seconds until the next start, or None to give up."""


@dataclass(kw_only=True)
class Member:
    """One process of the group and how it is started, again and again if need be."""

    name: str
    start: Callable[[], ManagedProcess]
    stop: Callable[[], None] | None = None
    """Where ending it takes more than ending its process."""
    process: ManagedProcess | None = None
    crashes: list[float] = field(default_factory=list)
    start_at: float | None = None
    """When it is due again after a crash."""

    def end(self) -> None:
        if self.stop is not None:
            self.stop()
        elif self.process is not None:
            self.process.stop()
        self.process = None


class Group:
    """Members in the order of their dependence: started first to last, ended last to first."""

    def __init__(self, say: Callable[[str], None], restarts: RestartPolicy = next_delay) -> None:
        self._members: list[Member] = []
        self._say = say
        self._restarts = restarts

    def add(self, member: Member) -> None:
        member.process = member.start()
        self._members.append(member)

    def run(self, until: Callable[[], bool]) -> None:
        """Keep every member alive until `until` says so.

        Raises:
            GroupFailedError: if a member keeps crashing; holds the end of its log.
        """
        while not until():
            self.tend()
            time.sleep(_POLL_SECONDS)

    def tend(self) -> None:
        """Look at every member once."""
        now = time.monotonic()
        for member in self._members:
            if member.process is not None and member.process.exit_code() is not None:
                self._note_crash(member, member.process, now)
            elif member.start_at is not None and now >= member.start_at:
                member.start_at = None
                member.process = member.start()

    def stop(self) -> None:
        """End everything, also when ending one member fails."""
        # The last two, API and worker, wait for nothing of each other: ask first, wait afterwards.
        for member in self._members[-2:]:
            if member.process is not None and member.stop is None:
                member.process.request_stop()
        failures: list[Exception] = []
        while self._members:
            try:
                self._members.pop().end()
            except Exception as error:  # the others must end too
                failures.append(error)
        if failures:
            raise ExceptionGroup("some members did not end", failures)

    def _note_crash(self, member: Member, process: ManagedProcess, now: float) -> None:
        code, tail = process.exit_code(), process.log_tail()
        member.crashes.append(now)
        member.end()
        delay = self._restarts(now, member.crashes)
        if delay is None:
            raise GroupFailedError(
                f"{member.name} ended {len(member.crashes)} times (exit code {code});"
                f" the end of {process.command.log}:\n{tail}"
            )
        member.start_at = now + delay
        self._say(f"{member.name} ended with exit code {code}; starting it again in {delay:g} s")
