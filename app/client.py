"""The service from Python: a typed, synchronous client.

ClientError
├── ApiError          the service answered with a problem document
├── JobNotDoneError   the job ended otherwise than well
├── ForgedWebhookError a request was not signed with the webhook's secret, or too long ago
└── DamagedFileError  a download is not what its SHA-256 says
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from httpx_sse import connect_sse
from standardwebhooks import Webhook, WebhookVerificationError

from app.api.comparison_schemas import ComparisonOut
from app.api.event_messages import LIVE, JobLive
from app.api.schemas import ArtifactList, ArtifactOut, EventList, EventOut, JobList, JobOut
from app.api.sweep_schemas import SweepDetailsOut, SweepList, SweepOut
from app.api.upload_schemas import UploadDetailsOut, UploadOut
from app.api.validation_schemas import ValidationOut
from app.api.webhook_schemas import WebhookList, WebhookOut, WebhookSecretOut
from app.domain.events import ENDS
from app.domain.job import DEFAULT_PRIORITY
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.domain.upload import UploadKind, UploadState, is_model_file
from intraslice_core.config import CompressionConfig, CompressionSettings, EvaluationConfig
from intraslice_core.reports.schema import CompressionReport

_TIMEOUT_SECONDS = 60.0
"""Longer than a long poll lasts, and than an event stream is silent."""
_LONG_POLL_SECONDS = 30.0
_RECONNECT_SECONDS = 1.0
_CHECK_SECONDS = 3600.0
"""For the service to read all of an upload once."""
_CHECK_POLL_SECONDS = 0.5
_PASSING = frozenset({429, 502, 503, 504})
"""The service, or what stands before it, is not there just now."""


class ClientError(Exception):
    """Something did not come back as it should."""


class ApiError(ClientError):
    """The service refused; `code` is stable, `request_id` finds the line in its log."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.problem: Mapping[str, Any] = response.json()
        except ValueError:
            # A proxy in between answered, not the service.
            self.problem = {"detail": response.text}
        self.code = self.problem.get("code")
        self.request_id = self.problem.get("request_id")
        super().__init__(f"{self.status} {self.code}: {self.problem.get('detail')}")


class JobNotDoneError(ClientError):
    """The job failed or was cancelled."""

    def __init__(self, job: JobOut) -> None:
        self.job = job
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"{job.id} is {job.state}{reason}")


class DamagedFileError(ClientError):
    """A download's SHA-256 is not the announced one."""


class ForgedWebhookError(ClientError):
    """The request does not come from the service, or is a copy of an old one."""


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The payload of a request that a webhook received; `body` as it came, byte for byte.

    Raises:
        ForgedWebhookError: if no signature is right, or the request is older than five minutes.
    """
    try:
        payload: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:
        # Headers without any form make the library stumble over them: ValueError.
        raise ForgedWebhookError(str(error)) from error
    return payload


class Client:
    """One service. Also a context manager that closes its connections."""

    def __init__(
        self, url: str, api_key: str | None = None, *, http: httpx.Client | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = http or httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def create_job(
        self,
        model: ModelSource,
        compression: CompressionConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> JobOut:
        body = {
            "model": model.model_dump(mode="json"),
            "compression": (compression or CompressionConfig()).model_dump(mode="json"),
            "evaluation": evaluation and evaluation.model_dump(mode="json"),
            "labels": dict(labels or {}),
        }
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return JobOut.model_validate(self._ask("POST", "/v1/jobs", json=body, headers=headers))

    def validate_job(
        self,
        model: ModelSource,
        compression: CompressionConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
    ) -> ValidationOut:
        """What a job would make and take; nothing is queued."""
        body = {
            "model": model.model_dump(mode="json"),
            "compression": (compression or CompressionConfig()).model_dump(mode="json"),
            "evaluation": evaluation and evaluation.model_dump(mode="json"),
        }
        return ValidationOut.model_validate(self._ask("POST", "/v1/jobs:validate", json=body))

    def get_job(self, job_id: str) -> JobOut:
        return JobOut.model_validate(self._ask("GET", f"/v1/jobs/{job_id}"))

    def list_jobs(
        self,
        *,
        state: State | None = None,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[JobOut]:
        """All jobs that meet the criteria, newest first, page by page."""
        query: dict[str, Any] = {"limit": 100} | ({"state": state.value} if state else {})
        query |= {"model": model} if model else {}
        query |= {f"label.{key}": value for key, value in (labels or {}).items()}
        while True:
            page = JobList.model_validate(self._ask("GET", "/v1/jobs", params=query))
            yield from page.data
            if page.next_cursor is None:
                return
            query["after"] = page.next_cursor

    def cancel_job(self, job_id: str) -> JobOut:
        return JobOut.model_validate(self._ask("POST", f"/v1/jobs/{job_id}/cancel"))

    def pause_job(self, job_id: str) -> JobOut:
        return JobOut.model_validate(self._ask("POST", f"/v1/jobs/{job_id}/pause"))

    def resume_job(self, job_id: str) -> JobOut:
        return JobOut.model_validate(self._ask("POST", f"/v1/jobs/{job_id}/resume"))

    def retry_job(self, job_id: str) -> JobOut:
        return JobOut.model_validate(self._ask("POST", f"/v1/jobs/{job_id}/retry"))

    def delete_job(self, job_id: str) -> None:
        response = self._http.delete(f"/v1/jobs/{job_id}")
        if response.is_error:
            raise ApiError(response)

    def compare(self, *job_ids: str) -> ComparisonOut:
        """Settings and results of two to twenty jobs, side by side."""
        answer = self._ask("GET", "/v1/compare", params={"jobs": ",".join(job_ids)})
        return ComparisonOut.model_validate(answer)

    def create_sweep(
        self,
        model: ModelSource,
        ratios: Sequence[float],
        compression: CompressionSettings | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = DEFAULT_PRIORITY,
        idempotency_key: str | None = None,
    ) -> SweepDetailsOut:
        """A job for each ratio; those on one machine share what does not depend on it."""
        body = {
            "model": model.model_dump(mode="json"),
            "compression": (compression or CompressionSettings()).model_dump(mode="json"),
            "ratios": list(ratios),
            "priority": priority,
            "evaluation": evaluation and evaluation.model_dump(mode="json"),
            "labels": dict(labels or {}),
        }
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._ask("POST", "/v1/sweeps", json=body, headers=headers)
        return SweepDetailsOut.model_validate(answer)

    def get_sweep(self, sweep_id: str) -> SweepDetailsOut:
        return SweepDetailsOut.model_validate(self._ask("GET", f"/v1/sweeps/{sweep_id}"))

    def list_sweeps(self) -> Iterator[SweepOut]:
        """All sweeps, newest first, page by page."""
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = SweepList.model_validate(self._ask("GET", "/v1/sweeps", params=query))
            yield from page.data
            if page.next_cursor is None:
                return
            query["after"] = page.next_cursor

    def cancel_sweep(self, sweep_id: str) -> SweepDetailsOut:
        return SweepDetailsOut.model_validate(self._ask("POST", f"/v1/sweeps/{sweep_id}/cancel"))

    def events(self, job_id: str, *, after: int = 0) -> Iterator[EventOut]:
        """The log of a job as it is now."""
        while True:
            answer = self._ask("GET", f"/v1/jobs/{job_id}/events", params={"after": after})
            page = EventList.model_validate(answer)
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].sequence

    def report(self, job_id: str) -> CompressionReport:
        return CompressionReport.model_validate(self._ask("GET", f"/v1/jobs/{job_id}/report"))

    def artifacts(self, job_id: str) -> list[ArtifactOut]:
        return ArtifactList.model_validate(self._ask("GET", f"/v1/jobs/{job_id}/artifacts")).data

    def create_webhook(
        self, url: str, events: Sequence[str] | None = None, *, description: str = ""
    ) -> WebhookSecretOut:
        """Keep the secret: it is not shown again. Without `events`, the ends of jobs are sent."""
        chosen = {"events": list(events)} if events is not None else {}
        body = {"url": url, "description": description, **chosen}
        return WebhookSecretOut.model_validate(self._ask("POST", "/v1/webhooks", json=body))

    def list_webhooks(self) -> Iterator[WebhookOut]:
        """All webhooks of the project, newest first, page by page."""
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = WebhookList.model_validate(self._ask("GET", "/v1/webhooks", params=query))
            yield from page.data
            if page.next_cursor is None:
                return
            query["after"] = page.next_cursor

    def delete_webhook(self, webhook_id: str) -> None:
        self._ask("DELETE", f"/v1/webhooks/{webhook_id}")

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobOut:
        """The job, once it has succeeded; the service is asked again only when there is news.

        Raises:
            JobNotDoneError: if it failed or was cancelled.
            TimeoutError: if it takes longer than `timeout` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        etag = '""'
        while True:
            rest = deadline - time.monotonic()
            response = self._send(
                "GET",
                f"/v1/jobs/{job_id}",
                params={"wait": max(0.0, min(rest, _LONG_POLL_SECONDS))},
                headers={"If-None-Match": etag},
            )
            if response.status_code == httpx.codes.OK:
                job = JobOut.model_validate(response.json())
                etag = response.headers["etag"]
                if job.state in TERMINAL:
                    break
            if rest <= 0:
                raise TimeoutError(f"{job_id} is {job.state} after {timeout} s")
        if job.state is not State.SUCCEEDED:
            raise JobNotDoneError(job)
        return job

    def watch(
        self, job_id: str, *, after: int = 0, patience: float = 60.0
    ) -> Iterator[EventOut | JobLive]:
        """A job's log as it is written and, between its events, where the job is; to its end.

        Args:
            job_id: the job.
            after: begin behind this `sequence`.
            patience: seconds for which the service may be away; no event is missed meanwhile.

        Raises:
            ApiError: if the service refuses, or stays unavailable for longer.
            httpx.TransportError: if it was away for longer.
        """
        heard_at = time.monotonic()
        ended = False
        while not ended:
            try:
                for message in self._stream(job_id, after):
                    heard_at = time.monotonic()
                    ended = message is None
                    if isinstance(message, EventOut):
                        after = message.sequence
                        ended = message.type in ENDS
                    if message is not None:
                        yield message
            except (httpx.TransportError, ApiError) as error:
                refused = isinstance(error, ApiError) and error.status not in _PASSING
                if refused or time.monotonic() - heard_at > patience:
                    raise
            if not ended:
                time.sleep(_RECONNECT_SECONDS)

    def _stream(self, job_id: str, after: int) -> Iterator[EventOut | JobLive | None]:
        """The messages of one connection; None says that there will be no more."""
        path = f"/v1/jobs/{job_id}/events/stream"
        with connect_sse(self._http, "GET", path, headers={"Last-Event-ID": str(after)}) as source:
            response = source.response
            if response.is_error:
                response.read()
                raise ApiError(response)
            if response.status_code == httpx.codes.NO_CONTENT:
                yield None
                return
            for message in source.iter_sse():
                if message.event == LIVE:
                    yield JobLive.model_validate_json(message.data)
                else:
                    yield EventOut.model_validate_json(message.data)

    def download(self, job_id: str, directory: Path) -> list[Path]:
        """Every artifact of the job, each checked against its SHA-256."""
        root = directory.resolve()
        paths = []
        for artifact in self.artifacts(job_id):
            target = (root / artifact.name).resolve()
            if not target.is_relative_to(root):
                raise DamagedFileError(f"{artifact.name} would leave {directory}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._download(artifact, target)
            paths.append(target)
        return paths

    def upload_model(self, directory: Path, *, upload_id: str | None = None) -> UploadOut:
        """Send a directory of safetensors; its id is a job's `ModelSource(source="upload")`.

        Code and pickles stay at home. An `upload_id` continues what was broken off.
        """
        files = [file for file in sorted(directory.iterdir()) if is_model_file(file.name)]
        return self._upload(UploadKind.MODEL, files, upload_id)

    def upload_text(self, file: Path, *, upload_id: str | None = None) -> UploadOut:
        """Send a text; `upload:` and its id is a source of calibration or evaluation."""
        return self._upload(UploadKind.TEXT, [file], upload_id)

    def _upload(self, kind: UploadKind, files: list[Path], upload_id: str | None) -> UploadOut:
        upload_id = upload_id or self._announce(kind, files)
        path = f"/v1/uploads/{upload_id}"
        for index, file in enumerate(files):
            self._send_parts(path, index, file)
        self._send("POST", f"{path}/complete")
        deadline = time.monotonic() + _CHECK_SECONDS
        while time.monotonic() < deadline:
            upload = UploadOut.model_validate(self._send("GET", path).json())
            if upload.state is UploadState.READY:
                return upload
            if upload.error is not None:
                raise ClientError(f"{upload_id} was refused: {upload.error.message}")
            time.sleep(_CHECK_POLL_SECONDS)
        raise ClientError(f"{upload_id} is still being checked")

    def _announce(self, kind: UploadKind, files: list[Path]) -> str:
        announced = []
        for file in files:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            announced.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256})
        body = {"kind": kind, "files": announced}
        return str(self._send("POST", "/v1/uploads", json=body).json()["id"])

    def _send_parts(self, path: str, index: int, file: Path) -> None:
        """What the service does not have yet, one part in memory at a time."""
        upload = UploadDetailsOut.model_validate(self._send("GET", path).json())
        if index >= len(upload.files) or upload.files[index].name != file.name:
            raise ClientError(f"{upload.id} does not take {file.name}")
        with file.open("rb") as stream:
            for part in upload.files[index].parts:
                if part.url is not None:
                    stream.seek(part.number * upload.part_bytes)
                    self._put(part.url, stream.read(part.bytes))

    def _put(self, url: str, content: bytes) -> None:
        """The link is the permission: a bucket must not see our key."""
        if url.startswith("/"):
            self._send("PUT", url, content=content)
            return
        response = httpx.put(url, content=content, timeout=_TIMEOUT_SECONDS)
        if response.is_error:
            raise ApiError(response)

    def _download(self, artifact: ArtifactOut, target: Path) -> None:
        digest = hashlib.sha256()
        # Under another name until it is complete.
        partial = target.with_name(target.name + ".part")
        # A store that is a bucket hands its files out itself.
        with self._http.stream("GET", artifact.url, follow_redirects=True) as response:
            if response.is_error:
                response.read()
                raise ApiError(response)
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != artifact.sha256:
            partial.unlink()
            raise DamagedFileError(f"{artifact.name} arrived damaged")
        partial.replace(target)

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._send(method, path, **arguments)
        return response.json() if response.content else None

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise ApiError(response)
        return response
