"""Removal of objects that no row owns, in two passes that are at least a day apart.

The first pass lists the prefixes below the deployment's own prefix that no job or upload owns. A
later pass removes what has been without owner, and unchanged, for `orphan_hours`. In between an
operator can restore a database, correct a setting, or look at `intraslice maintenance --dry-run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from app.adapters.database import orphans
from app.adapters.database.engine import take_turn
from app.adapters.database.orphans import ListedOrphan
from app.domain.artifact import JOBS_PREFIX
from app.domain.deployment import Deployment
from app.domain.upload import UPLOADS_PREFIX
from app.services.deployment import may_delete, require_own_store
from app.services.removal import delete_objects
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_TASK = "remove_orphans"
_BATCH = 500
_log = get_logger(__name__)


def remove_orphans(resources: Resources) -> int:
    """List orphans, remove those that are due, and return how many objects; a periodic task."""
    with resources.database.transaction() as transaction:
        if not take_turn(transaction, _TASK, resources.settings.orphan_check_seconds):
            return 0
    return remove_orphans_now(resources)


def remove_orphans_now(resources: Resources) -> int:
    """List orphans and remove those that are due; return the number of removed objects.

    Nothing is listed or removed while the table of jobs is empty, or in a store that is not
    provably the deployment's.
    """
    if not may_delete(resources):
        return 0
    with resources.database.transaction() as transaction:
        if not orphans.any_job(transaction):
            return 0
    unowned = find_unowned(resources, require_own_store(resources))
    with resources.database.transaction() as transaction:
        orphans.list_anew(transaction, unowned)
        candidates = orphans.listed(transaction)
    removed = sum(_remove_if_due(resources, orphan) for orphan in candidates)
    metrics.ORPHANS_REMOVED.inc(removed)
    return removed


def find_unowned(resources: Resources, deployment: Deployment) -> list[str]:
    """Return the prefixes below the deployment's own that no job or upload owns.

    A row is written before its first object and read here after the listing, so an object without
    a row has lost it.

    Raises:
        StoreUnavailableError: if any listing fails; an incomplete list would mislead.
    """
    listed = [
        prefix
        for kind in (JOBS_PREFIX, UPLOADS_PREFIX)
        for prefix in resources.store.directories(deployment.store_prefix + kind)
    ]
    return [prefix for batch in _batches(listed) for prefix in _without_owner(resources, batch)]


def removal_age(resources: Resources) -> timedelta:
    """Return the time from the first listing of an orphan, and its last change, to its removal."""
    return timedelta(hours=resources.settings.orphan_hours)


def _without_owner(resources: Resources, prefixes: list[str]) -> list[str]:
    ids = {prefix: _owner_of(prefix) for prefix in prefixes}
    with resources.database.transaction() as transaction:
        owned = orphans.owners(transaction, set(ids.values()))
    return [prefix for prefix, owner in ids.items() if owner not in owned]


def _owner_of(prefix: str) -> str:
    return prefix.rstrip("/").rpartition("/")[2]


def _remove_if_due(resources: Resources, orphan: ListedOrphan) -> int:
    """Remove the prefix if it is due and still without owner; return the number of objects."""
    age = removal_age(resources)
    with resources.database.transaction() as transaction:
        now = orphans.due(transaction, orphan.prefix, age)
        if now is None or orphans.owners(transaction, {_owner_of(orphan.prefix)}):
            return 0
    objects = resources.store.objects(orphan.prefix)
    if any(stored.changed_at > now - age for stored in objects):
        return 0
    removed = delete_objects(resources, [stored.key for stored in objects])
    with resources.database.transaction() as transaction:
        orphans.remove(transaction, orphan.prefix)
    _log.warning("orphans_removed", prefix=orphan.prefix, objects=removed)
    return removed


def _batches(prefixes: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(prefixes), _BATCH):
        yield prefixes[start : start + _BATCH]
