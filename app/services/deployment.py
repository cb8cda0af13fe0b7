"""The deployment's claim to its artifact store: written once, compared before any deletion."""

from __future__ import annotations

from app.adapters.database import deployment
from app.domain.deployment import (
    MARKER,
    Deployment,
    StoreClaim,
    StoreState,
    compare,
    marker_content,
    marker_owner,
)
from app.domain.errors import ArtifactNotFoundError, StoreNotOwnedError, StoreUnavailableError
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_log = get_logger(__name__)


def store_state(resources: Resources) -> StoreState:
    """Compare the store's marker with the database's deployment; both are read now.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    state = compare(resources.deployment.read(), _owner(resources), resources.store.place)
    metrics.STORE_OWNED.set(state.problem is None)
    return state


def claim_store(resources: Resources) -> StoreState:
    """Write the marker into a store without one, unless the deployment had a store before.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    state = store_state(resources)
    if state.claim is StoreClaim.UNCLAIMED:
        _write_marker(resources, state.deployment_id)
        state = store_state(resources)
    if state.claim is StoreClaim.OWN:
        with resources.database.transaction() as transaction:
            deployment.mark_store_claimed(transaction)
    return state


def take_over_store(resources: Resources) -> StoreState:
    """Write this deployment's marker over any other, by order of the operator.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    before = store_state(resources)
    if before.claim is not StoreClaim.OWN:
        resources.store.replace(MARKER, marker_content(before.deployment_id))
        _log.warning("store_taken_over", owner=before.owner, deployment_id=before.deployment_id)
    return claim_store(resources)


def require_own_store(resources: Resources) -> Deployment:
    """Return the deployment if the store is provably its own.

    Raises:
        StoreNotOwnedError: if the marker is missing or names another deployment.
        UnavailableError: if the database or the store does not answer.
    """
    state = claim_store(resources)
    if state.claim is not StoreClaim.OWN:
        raise StoreNotOwnedError(state.problem)
    return Deployment(id=state.deployment_id, store_claimed=True)


def check_store(resources: Resources) -> None:
    """Claim a new store and log whose it is, whenever that changes; a periodic task."""
    state = claim_store(resources)
    if not resources.deployment.changed(state.problem):
        return
    if state.problem is not None:
        _log.error("store_not_owned", claim=state.claim, detail=state.problem)
    else:
        _log.info("store_owned", deployment_id=state.deployment_id, store=state.place)


def may_delete(resources: Resources) -> bool:
    """Return whether the store is the deployment's own; for tasks that `check_store` speaks for.

    Raises:
        UnavailableError: if the database or the store does not answer.
    """
    return claim_store(resources).claim is StoreClaim.OWN


def _owner(resources: Resources) -> str | None:
    """Return the deployment id in the store's marker; None if there is no marker."""
    try:
        return marker_owner(resources.store.read(MARKER))
    except ArtifactNotFoundError:
        return None


def _write_marker(resources: Resources, deployment_id: str) -> None:
    try:
        resources.store.put_new(MARKER, marker_content(deployment_id), "application/json")
    except StoreUnavailableError:
        # Another process may have been first.
        if _owner(resources) is None:
            raise
