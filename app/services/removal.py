"""Deletion from the artifact store, the only place that deletes objects."""

from __future__ import annotations

from collections.abc import Iterable

from app.services.deployment import require_own_store
from app.services.resources import Resources


def delete_objects(resources: Resources, keys: Iterable[str]) -> int:
    """Delete objects that rows of this deployment's database name; return how many.

    Raises:
        StoreNotOwnedError: if the store is not provably this deployment's.
        StoreUnavailableError: if the store does not answer; some objects may be gone.
    """
    doomed = list(keys)
    if doomed:
        require_own_store(resources)
        resources.store.delete(doomed)
    return len(doomed)


def delete_prefix(resources: Resources, prefix: str) -> int:
    """Delete every object below a prefix that a row of this deployment's database owns or owned.

    Raises:
        StoreNotOwnedError: if the store is not provably this deployment's.
        StoreUnavailableError: if the store does not answer.
    """
    return delete_objects(resources, resources.store.keys(prefix))
