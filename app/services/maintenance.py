"""Maintenance of the artifact store by order of the operator: a plan without changes, or a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from app.adapters.database import orphans, retention, uploads
from app.domain.artifact import job_prefix
from app.domain.deployment import StoreClaim
from app.domain.maintenance import (
    MaintenancePlan,
    MaintenanceResult,
    PlannedRemoval,
    RemovalReason,
)
from app.domain.upload import upload_prefix
from app.services import artifact_check, deployment
from app.services import orphans as orphan_removal
from app.services import retention as expiry
from app.services import uploads as upload_expiry
from app.services.publication import unused_objects
from app.services.resources import Resources


def plan(resources: Resources) -> MaintenancePlan:
    """Return what a run would remove; nothing is changed, in the store or in the database.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    state = deployment.store_state(resources)
    removals = () if state.problem is not None else tuple(_removals(resources))
    return MaintenancePlan(
        deployment_id=state.deployment_id,
        store=state.place,
        claim=state.claim,
        problem=state.problem,
        removals=removals,
    )


def run(resources: Resources, *, check_all: bool = False) -> MaintenanceResult:
    """Remove what is due and check the artifacts that are due, or all with `check_all`.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    state = deployment.claim_store(resources)
    owned = state.claim is StoreClaim.OWN
    counts = {
        "settled_jobs": _repeated(expiry.settle, resources),
        "expired_jobs": _repeated(expiry.expire, resources),
        "expired_uploads": _repeated(upload_expiry.expire, resources),
        "orphaned_objects": orphan_removal.remove_orphans_now(resources),
    }
    outcome = artifact_check.check_due_artifacts(resources, every=check_all)
    with resources.database.transaction() as transaction:
        missing = retention.missing(transaction)
    return MaintenanceResult(
        store=state.place,
        problem=state.problem,
        checked_jobs=outcome.checked,
        missing_artifacts=tuple(missing),
        **(counts if owned else {}),
    )


def _repeated(task: Callable[[Resources], int], resources: Resources) -> int:
    """Repeat a task that works in batches until nothing is left; return the sum."""
    done = 0
    while batch := task(resources):
        done += batch
    return done


def _removals(resources: Resources) -> Iterator[PlannedRemoval]:
    yield from _of_jobs(resources)
    yield from _of_uploads(resources)
    yield from _of_orphans(resources)


def _of_jobs(resources: Resources) -> Iterator[PlannedRemoval]:
    with resources.database.transaction() as transaction:
        expired = retention.due(transaction, None)
        ended = retention.unsettled_jobs(transaction, None)
    for job in expired:
        objects = resources.store.sizes(job_prefix(job))
        yield from _removal(RemovalReason.EXPIRED_JOB, job.id, objects)
    expired_ids = {job.id for job in expired}
    for job in ended:
        if job.id not in expired_ids:
            objects = unused_objects(resources, job, job_prefix(job))
            yield from _removal(RemovalReason.UNUSED_ATTEMPT, job.id, objects)


def _of_uploads(resources: Resources) -> Iterator[PlannedRemoval]:
    with resources.database.transaction() as transaction:
        expired = uploads.due(transaction, None)
    for upload in expired:
        objects = resources.store.sizes(upload_prefix(upload))
        yield from _removal(RemovalReason.EXPIRED_UPLOAD, upload.id, objects)


def _of_orphans(resources: Resources) -> Iterator[PlannedRemoval]:
    present = resources.deployment.read()
    with resources.database.transaction() as transaction:
        if not orphans.any_job(transaction):
            return
        listed = {orphan.prefix: orphan.listed_at for orphan in orphans.listed(transaction)}
        now = orphans.now(transaction)
    age = orphan_removal.removal_age(resources)
    for prefix in orphan_removal.find_unowned(resources, present):
        objects = resources.store.objects(prefix)
        sizes = {stored.key: stored.bytes for stored in objects}
        due_at = max([listed.get(prefix, now), *(stored.changed_at for stored in objects)]) + age
        yield from _removal(RemovalReason.ORPHAN, prefix, sizes, due_at if due_at > now else None)


def _removal(
    reason: RemovalReason, owner: str, sizes: dict[str, int], due_at: datetime | None = None
) -> Iterator[PlannedRemoval]:
    """Yield the removal, unless there is nothing to remove."""
    if sizes:
        yield PlannedRemoval(
            reason=reason,
            owner=owner,
            objects=len(sizes),
            bytes=sum(sizes.values()),
            due_at=due_at,
        )
