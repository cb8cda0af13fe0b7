"""A supervised group of processes: crashed members are restarted, and all are stopped together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.embedded.process import EmbeddedError, ManagedProcess

_POLL_SECONDS = 0.2
_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
_WINDOW_SECONDS = 300.0

RestartPolicy = Callable[[float, Sequence[float]], float | None]
"""Function of the current time and the times of all crashes. It returns the seconds until the next
start, or None to give up."""


class GroupFailedError(EmbeddedError):
    """A member of the group crashed too often."""


def next_delay(now: float, crashes: Sequence[float]) -> float | None:
    """Return the seconds to wait before the next start, or None after too many recent crashes.

    `crashes` holds the times of all crashes, the latest included. Crashes older than the window do
    not count, so a member that fails once a day is restarted without limit.
    """
    recent = sum(1 for crash in crashes if now - crash < _WINDOW_SECONDS)
    return _DELAYS[recent - 1] if recent <= len(_DELAYS) else None


@dataclass(kw_only=True)
class Member:
    """A process of the group, and how to start and stop it."""

    name: str
    start: Callable[[], ManagedProcess]
    stop: Callable[[], None] | None = None
    """Function that stops the member, if stopping its process is not enough."""
    process: ManagedProcess | None = None
    crashes: list[float] = field(default_factory=list)
    start_at: float | None = None
    """Time of the next start after a crash."""

    def end(self) -> None:
        """Stop the member."""
        if self.stop is not None:
            self.stop()
        elif self.process is not None:
            self.process.stop()
        self.process = None


class Group:
    """Members in the order of their dependencies: started in order, stopped in reverse order.

    Args:
        report: receives one line for every restart.
        restarts: decides when a crashed member is started again.
    """

    def __init__(self, report: Callable[[str], None], restarts: RestartPolicy = next_delay) -> None:
        self._members: list[Member] = []
        self._report = report
        self._restarts = restarts

    def add(self, member: Member) -> None:
        """Start a member and supervise it from now on."""
        member.process = member.start()
        self._members.append(member)

    def run(self, until: Callable[[], bool]) -> None:
        """Supervise the members until `until` returns True.

        Raises:
            GroupFailedError: if a member crashes too often; contains the end of its log.
        """
        while not until():
            self.tend()
            time.sleep(_POLL_SECONDS)

    def tend(self) -> None:
        """Check every member once: record crashes and start members that are due.

        Raises:
            GroupFailedError: if a member crashes too often; contains the end of its log.
        """
        now = time.monotonic()
        for member in self._members:
            if member.process is not None and member.process.exit_code() is not None:
                self._note_crash(member, member.process, now)
            elif member.start_at is not None and now >= member.start_at:
                member.start_at = None
                self._start_again(member)

    def stop(self) -> None:
        """Stop all members, even if stopping one of them fails.

        Raises:
            ExceptionGroup: of the errors of the members that could not be stopped.
        """
        # The last two, API and worker, are independent: signal both before waiting for either.
        for member in self._members[-2:]:
            if member.process is not None and member.stop is None:
                member.process.request_stop()
        failures: list[Exception] = []
        while self._members:
            try:
                self._members.pop().end()
            except Exception as error:  # the other members must be stopped too
                failures.append(error)
        if failures:
            raise ExceptionGroup("some members could not be stopped", failures)

    def _note_crash(self, member: Member, process: ManagedProcess, now: float) -> None:
        code, tail = process.exit_code(), process.log_tail()
        member.end()
        ending = f"last exit code {code}); end of {process.command.log}:\n{tail}"
        self._schedule_start(member, now, f"exited with code {code}", ending)

    def _start_again(self, member: Member) -> None:
        """Start a crashed member; if it dies before it is ready, that is one more crash."""
        try:
            member.process = member.start()
        except EmbeddedError as error:
            ending = f"last it did not start): {error}"
            self._schedule_start(member, time.monotonic(), "did not restart", ending)

    def _schedule_start(self, member: Member, now: float, event: str, ending: str) -> None:
        """Schedule the next start after a crash.

        Raises:
            GroupFailedError: if the member crashes too often; its message has this ending.
        """
        member.crashes.append(now)
        delay = self._restarts(now, member.crashes)
        if delay is None:
            raise GroupFailedError(f"{member.name} exited {len(member.crashes)} times ({ending}")
        member.start_at = now + delay
        self._report(f"{member.name} {event}; restarting in {delay:g} s")
