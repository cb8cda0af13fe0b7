"""/v1/jobs: create, list, control and delete jobs, and read their results."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.api.conditional import (
    NOT_MODIFIED,
    IfMatch,
    IfNoneMatch,
    Representation,
    WaitQuery,
    changed_job,
)
from app.api.dependencies import (
    CriteriaQuery,
    IdempotencyKey,
    LimitQuery,
    Reader,
    ResourcesDep,
    WatchingDep,
    Writer,
)
from app.api.documentation import problems
from app.api.edit_schemas import JobEdit
from app.api.negotiation import HTML, JSON, preferred
from app.api.schemas import JobCreate
from app.domain.artifact import Archive, Artifact, ArtifactList
from app.domain.events import LAST_SEQUENCE, EventList
from app.domain.job import Job, JobList
from app.services import jobs, outbox, report_pages, retention
from app.services.archives import archive_name
from intraslice_core.reports.page import report_page

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 422, 503))


_REPORT = {
    "engine_version": "0.1.0",
    "params_before": 134_515_008,
    "params_after": 102_662_208,
    "layers": [{"layer": 0, "plan": {"intermediate_size": 1072}}],
}
_REPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            JSON: {"schema": {"type": "object"}, "example": _REPORT},
            HTML: {"schema": {"type": "string"}, "example": "<!doctype html>…"},
        }
    }
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of report pages."""


@router.post("", status_code=202, responses=problems(409))
def create_job(
    body: JobCreate,
    resources: ResourcesDep,
    principal: Writer,
    background: BackgroundTasks,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queue a compression."""
    creation = jobs.create_job(resources, principal, body.to_domain(), idempotency_key)
    background.add_task(outbox.dispatch_soon, resources)
    response.headers["Location"] = creation.job.urls.self
    if creation.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return creation.job


@router.get("", response_model=JobList, responses=NOT_MODIFIED)
def list_jobs(
    resources: ResourcesDep,
    principal: Reader,
    criteria: CriteriaQuery,
    if_none_match: IfNoneMatch = None,
    limit: LimitQuery = 20,
) -> Response:
    """List jobs, newest first; `label.KEY=VALUE` filters by a label and can be repeated."""
    page = jobs.list_jobs(resources, principal, criteria, limit=limit)
    return Representation.of(page, weak=True).response(if_none_match)


@router.get("/{job_id}", response_model=Job, responses=problems(404) | NOT_MODIFIED)
async def get_job(
    job_id: str,
    request: Request,
    resources: ResourcesDep,
    watching: WatchingDep,
    principal: Reader,
    if_none_match: IfNoneMatch = None,
    wait: WaitQuery = 0.0,
) -> Response:
    """Return a job, at once or once it has changed."""
    if wait:
        shown = await changed_job(
            watching, principal, job_id, request=request, wait=wait, known=if_none_match
        )
    else:
        job = await run_in_threadpool(jobs.get_job, resources, principal, job_id)
        shown = Representation.of(job)
    return shown.response(if_none_match)


@router.patch("/{job_id}", response_model=Job, responses=problems(404, 412))
def edit_job(
    job_id: str,
    body: JobEdit,
    resources: ResourcesDep,
    principal: Writer,
    if_match: IfMatch = None,
) -> Response:
    """Change a job's name and labels, in any state; those that the body does not name stay."""
    edited = jobs.edit_labels(
        resources,
        principal,
        job_id,
        body.changes(),
        is_current=lambda job: Representation.of(job).fulfils(if_match),
    )
    return Representation.of(edited).response(None)


@router.post("/{job_id}/cancel", status_code=202, responses=problems(404, 409))
def cancel_job(job_id: str, resources: ResourcesDep, principal: Writer) -> Job:
    """Cancel a job; a running one takes a few seconds to stop."""
    return jobs.cancel_job(resources, principal, job_id)


@router.post("/{job_id}/pause", status_code=202, responses=problems(404, 409))
def pause_job(job_id: str, resources: ResourcesDep, principal: Writer) -> Job:
    """Pause a job; a running one takes a few seconds to stop and keeps finished layers."""
    return jobs.pause_job(resources, principal, job_id)


@router.post("/{job_id}/resume", status_code=202, responses=problems(404, 409))
def resume_job(
    job_id: str, resources: ResourcesDep, principal: Writer, background: BackgroundTasks
) -> Job:
    """Queue a paused job again."""
    resumed = jobs.resume_job(resources, principal, job_id)
    background.add_task(outbox.dispatch_soon, resources)
    return resumed


@router.post("/{job_id}/retry", status_code=202, responses=problems(404, 409))
def retry_job(
    job_id: str, resources: ResourcesDep, principal: Writer, background: BackgroundTasks
) -> Job:
    """Queue a failed or cancelled job again, with all its attempts; it keeps finished layers."""
    retried = jobs.retry_job(resources, principal, job_id)
    background.add_task(outbox.dispatch_soon, resources)
    return retried


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409))
def delete_job(job_id: str, resources: ResourcesDep, principal: Writer) -> None:
    """Delete a job that has ended, and its files."""
    jobs.delete_job(resources, principal, job_id)


@router.post("/{job_id}/pin", responses=problems(404, 409, 410))
def pin_job(job_id: str, resources: ResourcesDep, principal: Writer) -> Job:
    """Keep a job's artifacts for ever."""
    return retention.pin_job(resources, principal, job_id, pinned=True)


@router.post("/{job_id}/unpin", responses=problems(404, 409, 410))
def unpin_job(job_id: str, resources: ResourcesDep, principal: Writer) -> Job:
    """Let a job's artifacts expire; their retention time starts again."""
    return retention.pin_job(resources, principal, job_id, pinned=False)


@router.get("/{job_id}/events", responses=problems(404))
def list_events(
    job_id: str,
    resources: ResourcesDep,
    principal: Reader,
    after: Annotated[int, Query(ge=0, le=LAST_SEQUENCE)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> EventList:
    """Read a job's log from a sequence number on."""
    return jobs.list_events(resources, principal, job_id, after=after, limit=limit)


@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses=problems(404, 406) | _REPORTED | NOT_MODIFIED,
)
def get_report(
    job_id: str,
    resources: ResourcesDep,
    principal: Reader,
    accept: Annotated[str | None, Header(max_length=4096)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the engine's report of a succeeded job, as JSON or as a page with plots."""
    varies = {"Vary": "Accept"}
    if preferred(accept, (JSON, HTML)) == HTML:
        page = report_page(report_pages.get_page(resources, principal, job_id))
        shown = Representation.of_bytes(page.encode(), f"{HTML}; charset=utf-8")
        return shown.response(if_none_match, varies | PAGE_HEADERS)
    body = json.dumps(jobs.get_report(resources, principal, job_id), separators=(",", ":"))
    return Representation.of_bytes(body.encode(), JSON).response(if_none_match, varies)


@router.get("/{job_id}/artifacts", responses=problems(404))
def list_artifacts(job_id: str, resources: ResourcesDep, principal: Reader) -> ArtifactList:
    """List a job's published files with download links."""
    seconds = resources.settings.url_expiry_seconds
    job = jobs.get_job(resources, principal, job_id)
    files = jobs.list_artifacts(resources, principal, job_id)
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    signer = resources.signer
    archive = Archive(
        name=f"{archive_name(job)}.zip",
        url=signer.sign_archive(job_id, seconds),
        expires_at=expires_at,
    )
    return ArtifactList(
        data=tuple(
            Artifact(
                **file.model_dump(),
                url=signer.sign(job_id, file.name, seconds),
                expires_at=expires_at,
            )
            for file in files
        ),
        archive=archive if files else None,
    )
