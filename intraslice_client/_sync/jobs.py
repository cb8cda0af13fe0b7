"""Jobs: creation, progress, results and downloads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
from httpx_sse import connect_sse

from app.domain.artifact import Artifact, ArtifactList, ReportLink
from app.domain.events import ENDS, LIVE, Event, EventList, JobLive
from app.domain.job import Job, JobList
from app.domain.job_log import LOG, LogLevel, LogLine, LogLineList
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from intraslice_client import _bodies as bodies
from intraslice_client._requests import idempotency_header, job_body, without_none
from intraslice_client._responses import parsed
from intraslice_client._retries import Backoff, may_retry
from intraslice_client._sync.downloads import Downloads
from intraslice_client._sync.transport import Transport
from intraslice_client.errors import job_not_done
from intraslice_core.config import CompressionConfig, EvaluationConfig

_LONG_POLL_SECONDS = 30.0
_ACCEPT_HTML = {"Accept": "text/html"}


class Jobs:
    """Methods of `/v1/jobs`."""

    def __init__(self, transport: Transport, downloads: Downloads) -> None:
        self._transport = transport
        self._downloads = downloads

    def create(  # noqa: PLR0913 (one parameter per field of the request)
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
        """Queue a compression job.

        The request carries an idempotency key, so retries do not create a second job.

        Args:
            model: the model to compress.
            compression: settings of the compression; None: the defaults.
            evaluation: settings of the evaluation; None skips it.
            labels: labels of the job.
            priority: 0 to 9; higher runs first.
            max_runtime_s: seconds after which a running attempt is stopped.
            max_pending_s: seconds after which a job that has not started fails.
            idempotency_key: a later call with the same key returns the same job; None generates
                one.
        """
        optional = {
            "priority": priority,
            "max_runtime_s": max_runtime_s,
            "max_pending_s": max_pending_s,
        }
        body = job_body(model, compression or CompressionConfig(), evaluation, labels, optional)
        return self._transport.fetch(
            Job,
            "POST",
            "/v1/jobs",
            json=body,
            headers=idempotency_header(idempotency_key),
            idempotent=True,
        )

    def validate(
        self,
        model: ModelSource,
        compression: CompressionConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
    ) -> bodies.Validation:
        """Estimate size, memory and time of a job without queueing it."""
        body = job_body(model, compression or CompressionConfig(), evaluation, None, {})
        return self._transport.fetch(
            bodies.Validation, "POST", "/v1/jobs:validate", json=body, idempotent=True
        )

    def get(self, job_id: str) -> Job:
        """Return a job."""
        return self._transport.fetch(Job, "GET", f"/v1/jobs/{job_id}")

    def list(
        self,
        *,
        state: State | None = None,
        model: str | None = None,
        sweep: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Job]:
        """Yield the jobs that match all given filters, newest first."""
        query = without_none(state=state and state.value, model=model, sweep=sweep)
        query |= {f"label.{key}": value for key, value in (labels or {}).items()}
        for page in self._transport.pages(JobList, "/v1/jobs", query):
            yield from page.data

    def edit(
        self,
        job_id: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> Job:
        """Change the name and the labels of a job, in any state.

        Args:
            job_id: id of the job.
            name: new name; None keeps it.
            labels: labels to set; None as a value removes the label. Others stay.
        """
        body = without_none(name=name) | ({"labels": dict(labels)} if labels else {})
        return self._transport.fetch(Job, "PATCH", f"/v1/jobs/{job_id}", json=body, idempotent=True)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running job stops within a few seconds."""
        return self._act(job_id, "cancel", idempotent=True)

    def pause(self, job_id: str) -> Job:
        """Pause a job; a running job stops within a few seconds."""
        return self._act(job_id, "pause", idempotent=True)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._act(job_id, "resume")

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; finished layers are kept."""
        return self._act(job_id, "retry")

    def pin(self, job_id: str) -> Job:
        """Keep the artifacts of a job until it is unpinned."""
        return self._act(job_id, "pin", idempotent=True)

    def unpin(self, job_id: str) -> Job:
        """Let the artifacts of a job expire."""
        return self._act(job_id, "unpin", idempotent=True)

    def _act(self, job_id: str, action: str, *, idempotent: bool = False) -> Job:
        path = f"/v1/jobs/{job_id}/{action}"
        return self._transport.fetch(Job, "POST", path, idempotent=idempotent)

    def delete(self, job_id: str) -> None:
        """Delete a finished job and its files."""
        self._transport.send("DELETE", f"/v1/jobs/{job_id}", idempotent=False)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """Yield the events of a job so far, those after the sequence number `after`."""
        path = f"/v1/jobs/{job_id}/events"
        while True:
            page = self._transport.fetch(EventList, "GET", path, params={"after": after})
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].sequence

    def logs(
        self,
        job_id: str,
        *,
        after: int = 0,
        level: LogLevel = LogLevel.DEBUG,
        follow: bool = False,
    ) -> Iterator[LogLine]:
        """Yield the stored log lines of a job's engine process, oldest first.

        Args:
            job_id: id of the job.
            after: sequence number of the last known line.
            level: least severe level to yield.
            follow: continue with new lines until the job ends.
        """
        path = f"/v1/jobs/{job_id}/logs"
        has_more = True
        while has_more:
            query = {"after": after, "level": level.value}
            page = self._transport.fetch(LogLineList, "GET", path, params=query)
            has_more = page.has_more
            for line in page.data:
                after = line.sequence
                yield line
        if follow:
            for message in self._follow(job_id, after, logs=True):
                if isinstance(message, LogLine) and message.level in level.and_above():
                    yield message

    def report(self, job_id: str) -> bodies.CompressionReport:
        """Return the compression report of a succeeded job."""
        return self._transport.fetch(bodies.CompressionReport, "GET", f"/v1/jobs/{job_id}/report")

    def report_page(self, job_id: str) -> str:
        """Return the compression report as a self-contained HTML page."""
        path = f"/v1/jobs/{job_id}/report"
        return (self._transport.send("GET", path, headers=_ACCEPT_HTML)).text

    def share_report(self, job_id: str, *, seconds: int | None = None) -> ReportLink:
        """Create a link to the report page of a job that works without an API key.

        Args:
            job_id: id of the job.
            seconds: lifetime of the link; None selects that of the service, 7 days.
        """
        return self._transport.fetch(
            ReportLink,
            "POST",
            f"/v1/jobs/{job_id}/report-links",
            params=without_none(seconds=seconds),
            idempotent=True,
        )

    def hand_offs(self, job_id: str) -> tuple[bodies.HandOff, ...]:
        """List the registry hand-offs of a job's checkpoint with their states."""
        path = f"/v1/jobs/{job_id}/hand-offs"
        return tuple((self._transport.fetch(bodies.HandOffList, "GET", path)).data)

    def hand_off(
        self, job_id: str, target: Literal["hub", "mlflow"], *, name: str | None = None
    ) -> bodies.HandOff:
        """Let the service hand off a succeeded job's checkpoint to a registry or hub.

        Args:
            job_id: id of the job.
            target: registry or hub, which the service must have.
            name: name of the repository or registered model; None selects the service's.
        """
        return self._transport.fetch(
            bodies.HandOff,
            "POST",
            f"/v1/jobs/{job_id}/hand-offs",
            json={"target": target, "name": name},
            idempotent=True,
        )

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """List the published files of a job, with URLs that need no API key until they expire."""
        path = f"/v1/jobs/{job_id}/artifacts"
        return tuple((self._transport.fetch(ArtifactList, "GET", path)).data)

    def download(
        self,
        job_id: str,
        directory: Path,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Path, ...]:
        """Download all artifacts of a job and verify their SHA-256.

        Complete files are skipped; interrupted downloads are resumed.

        Args:
            job_id: id of the job.
            directory: target directory; created if missing.
            on_progress: called with the bytes received so far and the total.

        Raises:
            DamagedFileError: if the SHA-256 of a file does not match.
        """
        list_artifacts = partial(self.artifacts, job_id)
        return self._downloads.download_all(list_artifacts, directory, on_progress)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until a job has succeeded, by long polling, and return it.

        Args:
            job_id: id of the job.
            timeout: limit in seconds; None waits without limit.
            on_progress: called with the job whenever it has changed.

        Raises:
            JobFailedError: if the job failed.
            JobCancelledError: if the job was cancelled.
            TimeoutError: if the job is not finished after `timeout` seconds.
        """
        for job in self._changes(job_id, timeout):
            if on_progress is not None:
                on_progress(job)
            if job.state is State.SUCCEEDED:
                return job
            if job.state in TERMINAL:
                raise job_not_done(job)
        raise TimeoutError(f"job {job_id} is still {job.state} after {timeout} s")

    def _changes(self, job_id: str, timeout: float | None) -> Iterator[Job]:
        """Yield the job now and after each change, until `timeout` seconds have passed."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        remaining, etag = math.inf, '""'
        while remaining > 0:
            remaining = deadline - time.monotonic()
            response = self._transport.send(
                "GET",
                f"/v1/jobs/{job_id}",
                params={"wait": max(0.0, min(remaining, _LONG_POLL_SECONDS))},
                headers={"If-None-Match": etag},
            )
            if response.status_code == httpx.codes.OK:
                etag = response.headers["etag"]
                yield parsed(Job, response)

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event | JobLive]:
        """Yield the events of a job, and its live progress between them, until the job ends.

        After a lost connection the stream resumes without missing an event, if the service is
        reachable again within `patience` seconds.

        Args:
            job_id: id of the job.
            after: sequence number of the last known event.

        Raises:
            ApiError: if the service responds with an error.
            UnreachableError: if the service is unreachable for longer than `patience`.
        """
        for message in self._follow(job_id, after, logs=False):
            if not isinstance(message, LogLine):
                yield message

    def _follow(
        self, job_id: str, after: int, *, logs: bool
    ) -> Iterator[Event | JobLive | LogLine]:
        """Yield what follows a sequence number until the job ends, over any lost connections."""
        backoff = Backoff(self._transport.patience)
        has_ended = False
        while not has_ended:
            outcome: httpx.Response | httpx.TransportError | None = None
            try:
                for message in self._stream(job_id, after, logs=logs):
                    backoff.reset()
                    if message is None:
                        return
                    if not isinstance(message, Event | JobLive | LogLine):
                        outcome = message
                        break
                    yield message
                    if not isinstance(message, JobLive):
                        after = message.sequence
                    if isinstance(message, Event):
                        # Another attempt may follow the end of an earlier one.
                        has_ended = message.type in ENDS
            except httpx.TransportError as error:
                outcome = error
            if outcome is not None or not has_ended:
                has_ended = False
                self._delay_reconnect(outcome, backoff)

    def _delay_reconnect(
        self, outcome: httpx.Response | httpx.TransportError | None, backoff: Backoff
    ) -> None:
        """Wait before the next connection; `outcome` is None if the stream ended normally."""
        if outcome is None:
            time.sleep(0.5)
            return
        self._transport.delay_retry(outcome, backoff, may_retry(outcome, idempotent=True))

    def _stream(
        self, job_id: str, after: int, *, logs: bool
    ) -> Iterator[Event | JobLive | LogLine | httpx.Response | None]:
        """Yield the messages of one connection; None ends the log, a response is an error."""
        path, headers = f"/v1/jobs/{job_id}/events/stream", {"Last-Event-ID": str(after)}
        query = {"logs": "true"} if logs else {}
        with connect_sse(
            self._transport.http, "GET", path, headers=headers, params=query
        ) as source:
            response = source.response
            if response.is_error:
                response.read()
                yield response
            elif response.status_code == httpx.codes.NO_CONTENT:
                yield None
            else:
                for message in source.iter_sse():
                    if not message.data:
                        # A heartbeat: httpx-sse turns it into an empty message once an id was seen.
                        continue
                    if message.event == LIVE:
                        yield JobLive.model_validate_json(message.data)
                    elif message.event == LOG:
                        yield LogLine.model_validate_json(message.data)
                    else:
                        yield Event.model_validate_json(message.data)
