"""Watched jobs: for any number of watchers, a process listens once and reads each change once.

    NOTIFY ──▶ the listener ──▶ WatchedJob, one a job ──▶ its watchers, in this process
                                    │ reads what is new, in a thread of our own

The one asynchronous service, because a thread for each watcher would be too many. A notification
only says where to look. While none can be heard, every watched job is looked at every
`watch_poll_seconds`, and once they are heard again all are looked at, for what was missed. Queued
jobs are always looked at so often: other jobs change their place in the queue.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from app.adapters.database import jobs, log_lines
from app.adapters.database.notifications import listen
from app.domain.errors import (
    OUTAGE_ERRORS,
    DatabaseUnavailableError,
    JobNotFoundError,
    ServiceError,
)
from app.domain.events import Event
from app.domain.identifiers import is_job_id
from app.domain.job import JobRecord
from app.domain.job_log import MOST_LINES, Entry, LogLine
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.services.resources import Resources
from app.telemetry import get_logger

_READERS = 2
"""Threads, and so connections, for readings; they are separate from those of requests."""
_PAGE = 1000
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 10.0
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Result of one reading; without a job if it was deleted."""

    job: JobRecord | None
    entries: list[Entry]
    """Events and log lines, in the order of their sequence numbers."""


def look(resources: Resources, job_id: str, after: int | None) -> Look:
    """Read a job, and its events and log lines beyond `after` if they are wanted.

    The job comes first: an end that it shows is in the log that is read after it.
    """
    log: list[Entry] = []
    with resources.database.transaction() as transaction:
        job = jobs.find(transaction, job_id)
        more = job is not None and after is not None
        while more:
            since = log[-1].sequence if log else after or 0
            page = log_lines.entries(transaction, job_id, after=since, limit=_PAGE)
            log += page
            more = len(page) == _PAGE
    return Look(job=job, entries=log)


class WatchedJob:
    """The state of one job while it is watched: its log grows, the rest is replaced."""

    def __init__(self, job_id: str, read: Callable[[str, int | None], Awaitable[Look]]) -> None:
        self.version = 0
        """Number that rises with every change."""
        self.closed = False
        """Set when this process ends and its watchers should connect to another."""
        self.watchers = 0
        self.missed = False
        """Set when the last reading failed, so that changes may be missing."""
        self._job_id = job_id
        self._read = read
        self._job: JobRecord | None = None
        self._log: list[Entry] | None = None
        self._changed = asyncio.Event()
        self._wanted: asyncio.Future[Exception | None] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def job(self) -> JobRecord:
        """The job as last read.

        Raises:
            JobNotFoundError: if it is gone.
        """
        if self._job is None:
            raise JobNotFoundError
        return self._job

    @property
    def job_or_none(self) -> JobRecord | None:
        """The job as last read; None if it was deleted."""
        return self._job

    def follow_log(self) -> None:
        """Read the log too from now on."""
        if self._log is None:
            self._log = []

    def entries_after(self, sequence: int) -> list[Entry]:
        """Return the events and log lines that were read with a higher sequence number."""
        log = self._log or []
        return log[bisect_right(log, sequence, key=lambda entry: entry.sequence) :]

    def events_after(self, sequence: int) -> list[Event]:
        """Return the events that were read with a higher sequence number."""
        return [entry for entry in self.entries_after(sequence) if isinstance(entry, Event)]

    @property
    def is_queued(self) -> bool:
        """True if other jobs, which notify others, change the job's place in the queue."""
        return self._job is not None and self._job.state is State.QUEUED

    async def changed_since(self, version: int) -> None:
        """Return once there is another version, or none will follow."""
        while self.version == version and not self.closed:
            await self._changed.wait()

    async def refresh(self) -> None:
        """Return once the result of a reading that began after this call is available.

        Raises:
            ServiceError: if it could not be made.
        """
        error = await asyncio.shield(self.want_reading())
        if error is not None:
            raise error

    def want_reading(self) -> asyncio.Future[Exception | None]:
        """Start a reading once the current one ends; calls until then share it."""
        if self._wanted is None:
            self._wanted = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_while_wanted())
        return self._wanted

    def close(self) -> None:
        """End all watches of the job."""
        self.closed = True
        self._wake()

    def stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read_while_wanted(self) -> None:
        try:
            while (wanted := self._wanted) is not None:
                self._wanted = None
                wanted.set_result(await self._read_once())
        finally:
            self._reading = None

    async def _read_once(self) -> Exception | None:
        after = self._log[-1].sequence if self._log else None if self._log is None else 0
        try:
            seen = await self._read(self._job_id, after)
        except Exception as error:
            # Callers that wait for this reading raise the error; others get the next reading.
            log = _log.debug if isinstance(error, OUTAGE_ERRORS) else _log.warning
            log("watching_failed", job_id=self._job_id, error=type(error).__name__)
            self.missed = True
            return error
        self.missed = False
        if seen.job != self._job or seen.entries:
            self._job = seen.job
            if self._log is not None:
                self._log = _bounded(self._log + seen.entries)
            self.version += 1
            self._wake()
        return None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _bounded(log: list[Entry]) -> list[Entry]:
    """Return the log without its oldest lines, beyond as many as the database stores."""
    excess = sum(isinstance(entry, LogLine) for entry in log) - MOST_LINES
    if excess <= 0:
        return log
    lines = [entry.sequence for entry in log if isinstance(entry, LogLine)]
    oldest = lines[excess]
    return [entry for entry in log if isinstance(entry, Event) or entry.sequence >= oldest]


class Watching:
    """All watched jobs of this process, as an asynchronous context manager."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._jobs: dict[str, WatchedJob] = {}
        self.hearing = False
        """Set while notifications arrive."""
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="watching")

    @property
    def job_count(self) -> int:
        """Number of watched jobs."""
        return len(self._jobs)

    async def __aenter__(self) -> Watching:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        for watched in self._jobs.values():
            watched.stop_reading()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._threads.shutdown()

    def close(self) -> None:
        """End every watch, so that the server can stop."""
        self._closed = True
        for watched in self._jobs.values():
            watched.close()

    @asynccontextmanager
    async def watch(
        self, principal: Principal, job_id: str, *, log: bool
    ) -> AsyncIterator[WatchedJob]:
        """Yield the job, kept up to date until the block ends.

        Raises:
            JobNotFoundError: if there is none in the principal's project.
        """
        if not is_job_id(job_id):
            raise JobNotFoundError
        watched = self._jobs.setdefault(job_id, WatchedJob(job_id, self._read))
        watched.watchers += 1
        try:
            if log:
                watched.follow_log()
            await watched.refresh()
            if watched.job.project_id != principal.project_id:
                raise JobNotFoundError
            watched.closed = self._closed
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._jobs[job_id]

    async def _read(self, job_id: str, after: int | None) -> Look:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, look, self._resources, job_id, after)

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await listen(
                    self._resources.settings.database_url,
                    ready=self._hear,
                    changed=self._look_at,
                )
            except DatabaseUnavailableError:
                pause = _FIRST_PAUSE_SECONDS if self.hearing else pause * 2
                self.hearing = False
                _log.debug("watching_deaf", effect="watched jobs are polled")
            pause = min(pause, _LONGEST_PAUSE_SECONDS)
            # Jitter, so that the processes do not all reconnect at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _hear(self) -> None:
        self.hearing = True
        for watched in self._jobs.values():
            watched.want_reading()

    def _look_at(self, job_id: str) -> None:
        watched = self._jobs.get(job_id)
        if watched is not None:
            watched.want_reading()

    async def _poll(self) -> None:
        """Read jobs again after missed notifications and failed readings, and queued jobs."""
        while True:
            await asyncio.sleep(self._resources.settings.watch_poll_seconds)
            for watched in list(self._jobs.values()):
                if watched.missed or not self.hearing or watched.is_queued:
                    # One after the other, so that polling does not overload a slow database.
                    with suppress(ServiceError):
                        await watched.refresh()
