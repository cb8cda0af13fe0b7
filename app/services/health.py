"""Readiness checks of the servers that this process needs, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock

from app.adapters.database.migrate import head_revision
from app.domain.errors import (
    DatabaseUnavailableError,
    ServiceError,
    StoreNotOwnedError,
    UnavailableError,
)
from app.services.deployment import store_state
from app.services.resources import Resources
from app.telemetry import get_logger

ANSWER_SECONDS = 4.0
"""Longer than any healthy server needs, shorter than an orchestrator's probe timeout."""
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one server's check."""

    name: str
    problem: str | None = None


class HealthProbe:
    """Concurrent checks of all servers; a hanging check is never started a second time."""

    def __init__(self, resources: Resources, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._checks: dict[str, Callable[[], None]] = {
            "database": lambda: _check_schema(resources),
            "broker": resources.queue.check,
            "store": resources.store.check,
            "deployment": lambda: _check_deployment(resources),
        }
        self._answer_seconds = answer_seconds
        self._pending: dict[str, Future[str | None]] = {}
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(len(self._checks), thread_name_prefix="health")

    def check_all(self) -> list[Check]:
        """Return every server's result; a check that takes too long has failed."""
        with self._lock:
            checks = {name: self._ask(name) for name in self._checks}
        wait(checks.values(), timeout=self._answer_seconds)
        return [Check(name=name, problem=self._answer(check)) for name, check in checks.items()]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, name: str) -> Future[str | None]:
        pending = self._pending.get(name)
        if pending is None or pending.done():
            pending = self._threads.submit(_problem, self._checks[name])
            self._pending[name] = pending
        return pending

    def _answer(self, check: Future[str | None]) -> str | None:
        if not check.done():
            return f"No answer within {self._answer_seconds:g} s"
        return check.result()


def _problem(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ServiceError as error:
        return error.message
    except Exception as error:
        _log.exception("health_check_crashed")
        return f"The check itself failed with {type(error).__name__}"
    return None


def _check_deployment(resources: Resources) -> None:
    """Raise if the store belongs to another deployment; the other checks report outages."""
    try:
        state = store_state(resources)
    except UnavailableError:
        return
    if state.problem is not None:
        raise StoreNotOwnedError(state.problem)


def _check_schema(resources: Resources) -> None:
    found, expected = resources.database.schema_version(), head_revision()
    if found != expected:
        raise DatabaseUnavailableError(
            f"The schema is at {found or 'nothing'}, {expected} is needed: run intraslice migrate"
        )
