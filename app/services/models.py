"""Models and texts that jobs may name here, and models that a project has compressed."""

from __future__ import annotations

from app.adapters.database import jobs
from app.domain.job import JobFilter
from app.domain.lifecycle import State
from app.domain.model_catalogue import METHODS, ModelList, Offer
from app.domain.principal import Principal
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import SUPPORTED_MODEL_TYPES


def list_models(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> ModelList:
    """Return what jobs may name, and a page of the project's succeeded jobs, newest first."""
    criteria = JobFilter(before=before, states=frozenset({State.SUCCEEDED}))
    with resources.database.transaction() as transaction:
        succeeded = jobs.newest(transaction, principal.project_id, criteria, limit=limit + 1)
    return ModelList.of(_offer(resources.settings), succeeded, limit)


def _offer(settings: Settings) -> Offer:
    """Return what jobs may name, directories by the paths that jobs need."""
    limits = settings.model_limits
    return Offer(
        methods=METHODS,
        architectures=SUPPORTED_MODEL_TYPES,
        hub=settings.hub_allow,
        packages=settings.package_allow,
        roots=tuple(str(root) for root in settings.model_roots),
        hub_data=settings.hub_data_allow,
        data_roots=tuple(str(root) for root in settings.data_roots),
        max_parameters=limits.max_parameters,
        max_model_bytes=limits.max_bytes,
        max_sequence_length=settings.max_sequence_length,
        max_calibration_tokens=settings.max_calibration_tokens,
    )
