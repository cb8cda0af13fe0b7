"""/v1/sweeps: one model at several ratios."""

from __future__ import annotations

from fastapi import APIRouter, BackgroundTasks, Response

from app.api.dependencies import (
    CursorQuery,
    IdempotencyKey,
    LimitQuery,
    Reader,
    ResourcesDep,
    Writer,
)
from app.api.documentation import problems
from app.api.pagination import decode_cursor
from app.api.sweep_schemas import SweepCreate, SweepDetailsOut, SweepList
from app.domain.identifiers import SWEEP
from app.services import outbox, sweeps

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], responses=problems(401, 403, 422, 503))


@router.post("", status_code=202, responses=problems(409))
def create_sweep(
    body: SweepCreate,
    resources: ResourcesDep,
    principal: Writer,
    background: BackgroundTasks,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SweepDetailsOut:
    """Queue a job for each ratio."""
    creation = sweeps.create_sweep(resources, principal, body.to_domain(), idempotency_key)
    background.add_task(outbox.dispatch_soon, resources)
    answer = SweepDetailsOut.of_details(creation.details)
    response.headers["Location"] = answer.urls.self
    if creation.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return answer


@router.get("")
def list_sweeps(
    resources: ResourcesDep, principal: Reader, limit: LimitQuery = 20, after: CursorQuery = None
) -> SweepList:
    """List sweeps, newest first."""
    before = decode_cursor(after, SWEEP)
    return SweepList.of(sweeps.list_sweeps(resources, principal, limit=limit, before=before))


@router.get("/{sweep_id}", responses=problems(404))
def get_sweep(sweep_id: str, resources: ResourcesDep, principal: Reader) -> SweepDetailsOut:
    """Show a sweep, its jobs and the table of size, quality and speed."""
    return SweepDetailsOut.of_details(sweeps.get_sweep(resources, principal, sweep_id))


@router.post("/{sweep_id}/cancel", status_code=202, responses=problems(404))
def cancel_sweep(sweep_id: str, resources: ResourcesDep, principal: Writer) -> SweepDetailsOut:
    """Stop every job of a sweep that has not ended."""
    return SweepDetailsOut.of_details(sweeps.cancel_sweep(resources, principal, sweep_id))
