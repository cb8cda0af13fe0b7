"""Readiness checks of the servers that this process needs, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock

from app.domain.deployment import StoreClaim
from app.domain.errors import ServiceError, StoreNotOwnedError, UnavailableError
from app.services.deployment import store_state
from app.services.resources import Resources
from app.services.schema import check_schema
from app.telemetry import get_logger

ANSWER_SECONDS = 4.0
"""Longer than any healthy server needs, shorter than an orchestrator's probe timeout."""
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one server's check."""

    name: str
    problem: str | None = None
    schema: str | None = None
    """Revision of the database's schema, where the check reads it."""


class HealthProbe:
    """Concurrent checks of all servers; a hanging check is never started a second time."""

    def __init__(self, resources: Resources, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: check_schema(resources.database),
            "broker": resources.queue.check,
            "store": resources.store.check,
            "deployment": lambda: _check_deployment(resources),
        }
        self._addresses = {
            "database": resources.database.address,
            "broker": resources.queue.address,
            "store": f"The artifact store {resources.store.place}",
            "deployment": f"The artifact store {resources.store.place}",
        }
        self._answer_seconds = answer_seconds
        self._pending: dict[str, Future[Check]] = {}
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(len(self._checks), thread_name_prefix="health")

    def check_all(self) -> list[Check]:
        """Return every server's result; a check that takes too long has failed."""
        with self._lock:
            checks = {name: self._ask(name) for name in self._checks}
        wait(checks.values(), timeout=self._answer_seconds)
        return [self._answer(name, check) for name, check in checks.items()]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, name: str) -> Future[Check]:
        pending = self._pending.get(name)
        if pending is None or pending.done():
            pending = self._threads.submit(_run, name, self._checks[name])
            self._pending[name] = pending
        return pending

    def _answer(self, name: str, check: Future[Check]) -> Check:
        if not check.done():
            problem = f"{self._addresses[name]}: no answer within {self._answer_seconds:g} s"
            return Check(name=name, problem=problem)
        return check.result()


def _run(name: str, check: Callable[[], str | None]) -> Check:
    try:
        return Check(name=name, schema=check())
    except ServiceError as error:
        return Check(name=name, problem=error.message)
    except Exception as error:
        _log.exception("health_check_crashed")
        return Check(name=name, problem=f"The check itself failed with {type(error).__name__}")


def _check_deployment(resources: Resources) -> None:
    """Raise if the store belongs to another deployment; the other checks report outages."""
    try:
        state = store_state(resources)
        if state.claim is StoreClaim.LOST:
            # A bucket that does not exist has no marker either; the check of the store says so.
            resources.store.check()
    except UnavailableError:
        return
    if state.problem is not None:
        raise StoreNotOwnedError(state.problem)
