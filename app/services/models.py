"""What can be compressed here, and what has been."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import jobs
from app.domain.job import Job, JobFilter
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.services.resources import Resources
from intraslice_core.config import SUPPORTED_MODEL_TYPES, ModelLimits


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What jobs may name; of local directories only the names, which betray no layout."""

    architectures: tuple[str, ...]
    hub: tuple[str, ...]
    packages: tuple[str, ...]
    roots: tuple[str, ...]
    hub_data: tuple[str, ...]
    data_roots: tuple[str, ...]
    limits: ModelLimits
    max_sequence_length: int
    max_calibration_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """What is offered, and some succeeded jobs of the project, newest first."""

    offer: Offer
    results: list[Job]
    has_more: bool


def list_models(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> ModelPage:
    with resources.database.transaction() as transaction:
        criteria = JobFilter(before=before, states=frozenset({State.SUCCEEDED}))
        found = jobs.newest(transaction, principal.project_id, criteria, limit=limit + 1)
    return ModelPage(offer=_offer(resources), results=found[:limit], has_more=len(found) > limit)


def _offer(resources: Resources) -> Offer:
    settings = resources.settings
    return Offer(
        architectures=SUPPORTED_MODEL_TYPES,
        hub=settings.hub_allow,
        packages=settings.package_allow,
        roots=tuple(root.name for root in settings.model_roots),
        hub_data=settings.hub_data_allow,
        data_roots=tuple(root.name for root in settings.data_roots),
        limits=settings.model_limits,
        max_sequence_length=settings.max_sequence_length,
        max_calibration_tokens=settings.max_calibration_tokens,
    )
