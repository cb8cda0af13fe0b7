"""/v1/sweeps: one model at several ratios, by one or several methods."""

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
from app.api.sweep_schemas import SweepCreate, SweepRatios
from app.domain.identifiers import SWEEP
from app.domain.resource import decode_cursor
from app.domain.sweep import SweepDetails, SweepList
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
) -> SweepDetails:
    """Queue a job for each method and ratio."""
    creation = sweeps.create_sweep(resources, principal, body.to_domain(), idempotency_key)
    background.add_task(outbox.dispatch_soon, resources)
    response.headers["Location"] = creation.sweep.urls.self
    if creation.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return creation.sweep


@router.get("")
def list_sweeps(
    resources: ResourcesDep, principal: Reader, limit: LimitQuery = 20, after: CursorQuery = None
) -> SweepList:
    """List sweeps, newest first."""
    before = decode_cursor(after, SWEEP)
    return sweeps.list_sweeps(resources, principal, limit=limit, before=before)


@router.get("/{sweep_id}", responses=problems(404))
def get_sweep(sweep_id: str, resources: ResourcesDep, principal: Reader) -> SweepDetails:
    """Return a sweep with its jobs and their Pareto table of size, quality and speed."""
    return sweeps.get_sweep(resources, principal, sweep_id)


@router.post("/{sweep_id}/ratios", status_code=202, responses=problems(404))
def add_ratios(
    sweep_id: str,
    body: SweepRatios,
    resources: ResourcesDep,
    principal: Writer,
    background: BackgroundTasks,
) -> SweepDetails:
    """Queue jobs for more ratios, with the sweep's settings; jobs that it has are left out."""
    sweep = sweeps.add_ratios(resources, principal, sweep_id, body.ratios)
    background.add_task(outbox.dispatch_soon, resources)
    return sweep


@router.post("/{sweep_id}/cancel", status_code=202, responses=problems(404))
def cancel_sweep(sweep_id: str, resources: ResourcesDep, principal: Writer) -> SweepDetails:
    """Cancel every job of a sweep that has not ended."""
    return sweeps.cancel_sweep(resources, principal, sweep_id)
