"""Any number of watchers share one listener and one reader of the real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import psycopg
import pytest

from app.domain.errors import DatabaseUnavailableError, JobNotFoundError
from app.domain.job import Job, Progress
from app.domain.job_log import LogLevel, LogLine, NewLogLine
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Principal
from app.services import claims, job_log, jobs
from app.services.resources import Resources
from app.services.watching import Look, WatchedJob, Watching
from intraslice_core.progress import Stage
from tests.app.builders import in_state, queued, running

pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.timeout(60)]
NEVER = 3600.0


class CountedWatching(Watching):
    """Watching that counts its readings and lets some of them fail."""

    readings = 0
    failures = 0

    async def _read(self, job_id: str, after: int | None) -> Look:
        self.readings += 1
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailableError
        return await super()._read(job_id, after)


def tuned(resources: Resources, **settings: object) -> Resources:
    changed = {"watch_poll_seconds": NEVER} | settings
    return replace(resources, settings=resources.settings.model_copy(update=changed))


def watch(
    resources: Resources, test: Callable[[CountedWatching], Awaitable[None]], **settings: object
) -> None:
    async def run() -> None:
        async with CountedWatching(tuned(resources, **settings)) as watching:
            await test(watching)

    asyncio.run(run())


async def listening(watching: Watching) -> None:
    """Wait until notifications arrive."""
    while not watching.hearing:
        await asyncio.sleep(0.01)


async def seen(watched: WatchedJob, state: State) -> None:
    while watched.job.state is not state:
        await watched.changed_since(watched.version)


def test_a_change_is_read_once_for_all_watchers(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with AsyncExitStack() as stack:
            contexts = [watching.watch(OPERATOR, job.id, log=True) for _ in range(200)]
            all_watched = await asyncio.gather(*map(stack.enter_async_context, contexts))
            assert watching.readings <= 2
            before = watching.readings
            await asyncio.to_thread(claims.claim_next_job, resources, "worker-1")
            await asyncio.gather(*(seen(watched, State.RUNNING) for watched in all_watched))
            assert watching.readings == before + 1
            assert [event.type for event in all_watched[-1].events_after(1)] == ["started"]
        assert watching.job_count == 0

    watch(resources, test)


def test_unlogged_progress_is_reported(resources: Resources) -> None:
    job = running(resources)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, job.id, log=True) as watched:
            version, logged = watched.version, len(watched.events_after(0))
            await asyncio.to_thread(advance, resources, job)
            await watched.changed_since(version)
            assert watched.job.progress is not None
            assert watched.job.progress.layer == 7
            assert len(watched.events_after(0)) == logged

    watch(resources, test)


def advance(resources: Resources, job: Job) -> None:
    progress = Progress(fraction=0.5, message="half", layer=7)
    claims.record_progress(resources, job.lease, Stage.COMPRESS, progress, log=False)


def test_changes_during_a_lost_connection_are_reported_after_it(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, job.id, log=True) as watched:
            await asyncio.to_thread(cut_and_claim, resources, job)
            await seen(watched, State.RUNNING)

    watch(resources, test)


def cut_and_claim(resources: Resources, job: Job) -> None:
    url = resources.settings.database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        cut = connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
        ).fetchall()
    assert cut == [(True,)]
    claims.claim_next_job(resources, "worker-1")


def test_jobs_are_polled_while_notifications_are_unavailable(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        async with watching.watch(OPERATOR, job.id, log=False) as watched:
            await asyncio.to_thread(claims.claim_next_job, resources, "worker-1")
            await seen(watched, State.RUNNING)
            assert not watching.hearing

    # Readings use the real database; the listener cannot reach its server.
    nowhere = "postgresql+psycopg://nobody@/nothing?host=/nonexistent"
    watch(resources, test, database_url=nowhere, watch_poll_seconds=0.02)


def test_the_place_of_a_watched_job_moves_up_with_the_jobs_before_it(
    resources: Resources,
) -> None:
    first, second = queued(resources), queued(resources)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, second.id, log=False) as watched:
            assert watched.job.queue_position == 2
            version = watched.version
            await asyncio.to_thread(jobs.cancel_job, resources, OPERATOR, first.id)
            await watched.changed_since(version)
            assert watched.job.queue_position == 1

    watch(resources, test, watch_poll_seconds=0.02)


def test_a_watched_job_has_no_more_lines_than_the_database(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.watching.MOST_LINES", 3)
    job = running(resources)

    def write(name: str) -> None:
        line = NewLogLine(time=job.created_at, level=LogLevel.INFO, event=name)
        job_log.record_lines(resources, job.lease, [line])

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, job.id, log=True) as watched:
            for name in "abcde":
                version = watched.version
                await asyncio.to_thread(write, name)
                await watched.changed_since(version)
            lines = [entry for entry in watched.entries_after(0) if isinstance(entry, LogLine)]
            assert [line.event for line in lines] == ["c", "d", "e"]
            assert [event.type for event in watched.events_after(0)] == ["queued", "started"]

    watch(resources, test)


def test_a_failed_reading_is_repeated(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, job.id, log=False) as watched:
            watching.failures = 1
            await asyncio.to_thread(claims.claim_next_job, resources, "worker-1")
            await seen(watched, State.RUNNING)
            assert watching.failures == 0

    watch(resources, test, watch_poll_seconds=0.02)


def test_a_watch_that_starts_during_a_database_outage_raises_an_error(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        watching.failures = 1
        with pytest.raises(DatabaseUnavailableError):
            async with watching.watch(OPERATOR, job.id, log=False):
                pass
        assert watching.job_count == 0

    watch(resources, test)


def test_a_new_watcher_sees_earlier_changes(resources: Resources) -> None:
    """Watch the job while another watcher has not yet received the notification."""
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        async with watching.watch(OPERATOR, job.id, log=False):
            jobs.cancel_job(resources, OPERATOR, job.id)  # blocks the event loop meanwhile
            async with watching.watch(OPERATOR, job.id, log=False) as newcomer:
                assert newcomer.job.state is State.CANCELLED

    watch(resources, test)


def test_jobs_of_other_projects_are_not_found(resources: Resources) -> None:
    job = queued(resources)
    stranger = Principal(project_id="other", scopes=OPERATOR.scopes)

    async def test(watching: CountedWatching) -> None:
        with pytest.raises(JobNotFoundError):
            async with watching.watch(stranger, job.id, log=False):
                pass

    watch(resources, test)


def test_a_deletion_is_reported(resources: Resources) -> None:
    job = in_state(resources, State.CANCELLED)

    async def test(watching: CountedWatching) -> None:
        await listening(watching)
        async with watching.watch(OPERATOR, job.id, log=True) as watched:
            version = watched.version
            await asyncio.to_thread(jobs.delete_job, resources, OPERATOR, job.id)
            await watched.changed_since(version)
            assert watched.job_or_none is None
            with pytest.raises(JobNotFoundError):
                _ = watched.job

    watch(resources, test)


def test_watches_end_when_the_process_does(resources: Resources) -> None:
    job = queued(resources)

    async def test(watching: CountedWatching) -> None:
        async with watching.watch(OPERATOR, job.id, log=False) as watched:
            waiting = asyncio.create_task(watched.changed_since(watched.version))
            await asyncio.sleep(0)
            watching.close()
            await waiting
            assert watched.closed
        async with watching.watch(OPERATOR, job.id, log=False) as late:
            assert late.closed

    watch(resources, test)
