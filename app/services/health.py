"""Can this process do its work? Asked of each server it needs."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database.migrate import head_revision
from app.domain.errors import DatabaseUnavailableError, UnavailableError
from app.services.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Check:
    """One server's answer."""

    name: str
    problem: str | None = None


def check_all(resources: Resources) -> list[Check]:
    checks = {
        "database": lambda: _check_schema(resources),
        "broker": resources.queue.check,
        "store": resources.store.check,
    }
    results = []
    for name, check in checks.items():
        try:
            check()
        except UnavailableError as error:
            results.append(Check(name=name, problem=error.message))
        else:
            results.append(Check(name=name))
    return results


def _check_schema(resources: Resources) -> None:
    found, expected = resources.database.schema_version(), head_revision()
    if found != expected:
        raise DatabaseUnavailableError(
            f"The schema is at {found or 'nothing'}, {expected} is needed: run intraslice migrate"
        )
