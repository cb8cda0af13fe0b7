"""The audit log, written once a response is determined and read by administrators."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from app.adapters.database import audit
from app.adapters.database.engine import take_turn
from app.domain.audit import AUDIT, Attempt, AuditList
from app.domain.errors import ServiceError
from app.domain.identifiers import new_id
from app.domain.principal import Principal
from app.services.keys import project_of
from app.services.resources import Resources
from app.telemetry import get_logger

_FORGETTING = "forget_audit"
_FORGETTING_SECONDS = 60.0
_FORGOTTEN_AT_ONCE = 5_000
_log = get_logger(__name__)


def record(resources: Resources, attempt: Attempt) -> None:
    """Insert the attempt into the audit log; if that fails, log all of it as an error.

    The response is determined by now: a database that fails here must not change it.
    """
    try:
        with resources.database.transaction() as transaction:
            audit.append(transaction, new_id(AUDIT), attempt)
    except ServiceError as error:
        _log.error("audit_lost", code=error.code, **asdict(attempt))
    except Exception:
        _log.exception("audit_lost", **asdict(attempt))


def list_audit(
    resources: Resources,
    principal: Principal,
    *,
    project_id: str | None,
    limit: int,
    before: str | None,
) -> AuditList:
    chosen = project_of(principal, project_id)
    with resources.database.transaction() as transaction:
        page = audit.newest(transaction, chosen, limit=limit + 1, before=before)
    return AuditList.of(page, limit)


def forget_old(resources: Resources) -> int:
    """Remove expired entries and return how many; a periodic task."""
    days = resources.settings.audit_days
    if days == 0:
        return 0
    with resources.database.transaction() as transaction:
        if not take_turn(transaction, _FORGETTING, _FORGETTING_SECONDS):
            return 0
        return audit.remove_older(transaction, timedelta(days=days), _FORGOTTEN_AT_ONCE)
