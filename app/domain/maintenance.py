"""Objects that maintenance would remove from the artifact store, and the outcome of a run."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from app.domain.deployment import StoreClaim
from app.domain.resource import ApiModel


class RemovalReason(StrEnum):
    """Reason for a removal."""

    EXPIRED_JOB = "expired job"
    UNUSED_ATTEMPT = "unused files of an ended job"
    EXPIRED_UPLOAD = "expired upload"
    ORPHAN = "no owner"


class PlannedRemoval(ApiModel):
    """Objects of one owner that maintenance removes at the next run, or not before `due_at`."""

    reason: RemovalReason
    owner: str
    """Id of the job or upload; the prefix of objects without an owner."""
    objects: int
    bytes: int
    due_at: datetime | None = None
    """Earliest time of removal; null: the next run."""


class MaintenancePlan(ApiModel):
    """Everything that maintenance would remove from the store, now and later."""

    deployment_id: str
    store: str
    claim: StoreClaim
    problem: str | None
    """Reason why nothing would be removed."""
    removals: tuple[PlannedRemoval, ...]

    @property
    def due(self) -> tuple[PlannedRemoval, ...]:
        """Removals of the next run."""
        return tuple(removal for removal in self.removals if removal.due_at is None)


class MaintenanceResult(ApiModel):
    """Outcome of a run."""

    store: str
    problem: str | None
    """Reason why nothing was removed."""
    expired_jobs: int = 0
    settled_jobs: int = 0
    expired_uploads: int = 0
    orphaned_objects: int = 0
    checked_jobs: int = 0
    """Jobs whose artifacts were compared with the store."""
    missing_artifacts: tuple[str, ...] = ()
    """Ids of succeeded jobs with files that the store does not hold."""
