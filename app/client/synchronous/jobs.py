"""Jobs: made, watched, waited for, fetched."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
from httpx_sse import connect_sse

from app.client.bodies import job_body, once, present
from app.client.errors import not_done
from app.client.retries import MAYBE_DONE, NOT_DONE, Pauses
from app.client.synchronous.downloads import Downloads
from app.client.synchronous.transport import Transport, failure
from app.domain.artifact import Artifact, ArtifactList
from app.domain.events import ENDS, LIVE, Event, EventList, JobLive
from app.domain.hand_off import HandOff, HandOffList
from app.domain.job import Job, JobList
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.domain.validation import Validation
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.reports.schema import CompressionReport

_LONG_POLL_SECONDS = 30.0
_HTML = {"Accept": "text/html"}


class Jobs:
    """`/v1/jobs`."""

    def __init__(self, transport: Transport, downloads: Downloads) -> None:
        self._transport = transport
        self._downloads = downloads

    def create(  # noqa: PLR0913  # a job has so many parts
        self,
        model: ModelSource,
        compression: CompressionConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        max_runtime_s: int | None = None,
        max_pending_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a compression. It is made once, however often the request has to be sent."""
        more = {
            "priority": priority,
            "max_runtime_s": max_runtime_s,
            "max_pending_s": max_pending_s,
        }
        body = job_body(model, compression or CompressionConfig(), evaluation, labels, more)
        return self._transport.ask(
            Job,
            "POST",
            "/v1/jobs",
            json=body,
            headers=once(idempotency_key),
            repeatable=True,
        )

    def validate(
        self,
        model: ModelSource,
        compression: CompressionConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
    ) -> Validation:
        """What a job would make and take; nothing is queued."""
        body = job_body(model, compression or CompressionConfig(), evaluation, None, {})
        return self._transport.ask(
            Validation, "POST", "/v1/jobs:validate", json=body, repeatable=True
        )

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._transport.ask(Job, "GET", f"/v1/jobs/{job_id}")

    def list(
        self,
        *,
        state: State | None = None,
        model: str | None = None,
        sweep: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Job]:
        """All jobs that meet the criteria, newest first, page by page."""
        query = present(state=state and state.value, model=model, sweep=sweep)
        query |= {f"label.{key}": value for key, value in (labels or {}).items()}
        for page in self._transport.pages(JobList, "/v1/jobs", query):
            yield from page.data

    def cancel(self, job_id: str) -> Job:
        """Stop it; a running one takes a few seconds."""
        return self._verb(job_id, "cancel", repeatable=True)

    def pause(self, job_id: str) -> Job:
        """Put it aside; a running one takes a few seconds."""
        return self._verb(job_id, "pause", repeatable=True)

    def resume(self, job_id: str) -> Job:
        """Queue it again after a pause."""
        return self._verb(job_id, "resume")

    def retry(self, job_id: str) -> Job:
        """Queue it again after it failed or was cancelled; it keeps finished layers."""
        return self._verb(job_id, "retry")

    def pin(self, job_id: str) -> Job:
        """Keep its artifacts for ever."""
        return self._verb(job_id, "pin", repeatable=True)

    def unpin(self, job_id: str) -> Job:
        """Let its artifacts expire."""
        return self._verb(job_id, "unpin", repeatable=True)

    def _verb(self, job_id: str, verb: str, *, repeatable: bool = False) -> Job:
        path = f"/v1/jobs/{job_id}/{verb}"
        return self._transport.ask(Job, "POST", path, repeatable=repeatable)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, and its files."""
        self._transport.send("DELETE", f"/v1/jobs/{job_id}", repeatable=False)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The log as it is now."""
        path = f"/v1/jobs/{job_id}/events"
        while True:
            page = self._transport.ask(EventList, "GET", path, params={"after": after})
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].sequence

    def report(self, job_id: str) -> CompressionReport:
        """The engine's report, once the job has succeeded."""
        return self._transport.ask(CompressionReport, "GET", f"/v1/jobs/{job_id}/report")

    def report_page(self, job_id: str) -> str:
        """The same as a page of HTML that needs nothing else."""
        path = f"/v1/jobs/{job_id}/report"
        return (self._transport.send("GET", path, headers=_HTML)).text

    def hand_offs(self, job_id: str) -> tuple[HandOff, ...]:
        """Where its checkpoint is sent, and how far that has come."""
        path = f"/v1/jobs/{job_id}/hand-offs"
        return tuple((self._transport.ask(HandOffList, "GET", path)).data)

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """Its published files, with links that need no key until they expire."""
        path = f"/v1/jobs/{job_id}/artifacts"
        return tuple((self._transport.ask(ArtifactList, "GET", path)).data)

    def download(
        self,
        job_id: str,
        directory: Path,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Path, ...]:
        """Every artifact, each checked against its SHA-256.

        What is there already and right is not fetched again, and what was broken off is gone on
        with.

        Args:
            job_id: the job.
            directory: made if it is not there.
            on_progress: hears how many bytes are there, and of how many.

        Raises:
            DamagedFileError: if a file arrives otherwise than it was announced.
        """

        def announced() -> tuple[Artifact, ...]:
            return self.artifacts(job_id)

        return self._downloads.fetch_all(announced, directory, on_progress)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """The job, once it has succeeded; the service is asked again only when there is news.

        Args:
            job_id: the job.
            timeout: seconds; None: as long as it takes.
            on_progress: hears the job whenever it has changed.

        Raises:
            JobFailedError: if it failed.
            JobCancelledError: if it was cancelled.
            TimeoutError: if it takes longer than `timeout`.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        etag = '""'
        while True:
            rest = deadline - time.monotonic()
            response = self._transport.send(
                "GET",
                f"/v1/jobs/{job_id}",
                params={"wait": max(0.0, min(rest, _LONG_POLL_SECONDS))},
                headers={"If-None-Match": etag},
            )
            if response.status_code == httpx.codes.OK:
                job = Job.model_validate_json(response.content)
                etag = response.headers["etag"]
                if on_progress is not None:
                    on_progress(job)
                if job.state in TERMINAL:
                    break
            if rest <= 0:
                raise TimeoutError(f"{job_id} is {job.state} after {timeout} s")
        if job.state is not State.SUCCEEDED:
            raise not_done(job)
        return job

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event | JobLive]:
        """The log as it is written and, between its events, where the job is; to its end.

        The service may be away for as long as the client's patience lasts: no event is missed.

        Args:
            job_id: the job.
            after: begin behind this `sequence`.

        Raises:
            ApiError: if the service refuses.
            UnreachableError: if it was away for too long.
        """
        pauses = Pauses(self._transport.patience)
        while True:
            outcome: httpx.Response | httpx.TransportError | None = None
            try:
                for message in self._stream(job_id, after):
                    pauses.well()
                    if message is None:
                        return
                    if not isinstance(message, Event | JobLive):
                        outcome = message
                        break
                    yield message
                    if isinstance(message, Event):
                        after = message.sequence
                        if message.type in ENDS:
                            return
            except httpx.TransportError as error:
                outcome = error
            self._rest(outcome, pauses)

    def _rest(self, outcome: httpx.Response | httpx.TransportError | None, pauses: Pauses) -> None:
        """Pause before the next connection; None is a stream that ended in good order."""
        if outcome is None:
            time.sleep(0.5)
            return
        refused = not isinstance(outcome, httpx.TransportError) and outcome.status_code not in (
            NOT_DONE | MAYBE_DONE
        )
        pause = None if refused else pauses.after(outcome)
        if pause is None:
            raise failure(outcome)
        time.sleep(pause)

    def _stream(self, job_id: str, after: int) -> Iterator[Event | JobLive | httpx.Response | None]:
        """The messages of one connection: None says that there will be no more; or a refusal."""
        path, headers = f"/v1/jobs/{job_id}/events/stream", {"Last-Event-ID": str(after)}
        with connect_sse(self._transport.http, "GET", path, headers=headers) as source:
            response = source.response
            if response.is_error:
                response.read()
                yield response
            elif response.status_code == httpx.codes.NO_CONTENT:
                yield None
            else:
                for message in source.iter_sse():
                    if not message.data:
                        # A heartbeat: the library makes a message of it once an id was seen.
                        continue
                    if message.event == LIVE:
                        yield JobLive.model_validate_json(message.data)
                    else:
                        yield Event.model_validate_json(message.data)
