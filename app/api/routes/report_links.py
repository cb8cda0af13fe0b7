"""Report pages by signed links, for readers without a key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.adapters.signed_urls import REPORTS
from app.api.conditional import NOT_MODIFIED, IfNoneMatch, Representation
from app.api.dependencies import ExpiresQuery, ResourcesDep, SignatureQuery, Writer
from app.api.documentation import problems
from app.api.negotiation import HTML
from app.api.routes.jobs import PAGE_HEADERS
from app.domain.artifact import ReportLink
from app.services import jobs, report_pages
from intraslice_core.reports.page import report_page

router = APIRouter(tags=["jobs"], responses=problems(403, 404, 422, 503))

_DAY = 86_400
_DEFAULT_SECONDS = 7 * _DAY
_MOST_SECONDS = 30 * _DAY
_PAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {HTML: {"schema": {"type": "string"}, "example": "<!doctype html>…"}}}
}


@router.post("/v1/jobs/{job_id}/report-links", status_code=201, responses=problems(401))
def create_report_link(
    job_id: str,
    resources: ResourcesDep,
    principal: Writer,
    seconds: Annotated[
        int, Query(ge=60, le=_MOST_SECONDS, description="Lifetime of the link in seconds.")
    ] = _DEFAULT_SECONDS,
) -> ReportLink:
    """Create a link to a job's report page that works without a key until it expires.

    The page has nothing of other jobs, no labels and no link that needs a key. A link cannot be
    revoked, except by deleting the job or replacing the signing key.
    """
    jobs.get_report(resources, principal, job_id)
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    return ReportLink(url=resources.signer.sign_report(job_id, seconds), expires_at=expires_at)


@router.get(
    f"{REPORTS}/{{job_id}}", response_class=Response, responses=problems() | _PAGE | NOT_MODIFIED
)
def read_shared_report(
    job_id: str,
    resources: ResourcesDep,
    expires: ExpiresQuery,
    signature: SignatureQuery,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a job's report page, by a signed link."""
    resources.signer.verify_report(job_id, expires, signature)
    page = report_page(report_pages.get_shared_page(resources, job_id))
    shown = Representation.of_bytes(page.encode(), f"{HTML}; charset=utf-8")
    return shown.response(if_none_match, PAGE_HEADERS)
