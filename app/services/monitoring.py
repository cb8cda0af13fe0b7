"""What the database knows of the whole deployment, for whoever collects metrics."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import backlog
from app.domain.errors import BrokerUnavailableError
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.services.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Work that is not done yet."""

    jobs: dict[State, int]
    """In every state that is not an end; ended jobs are counted as they end."""
    messages: int
    oldest_message_seconds: float


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a project's people want to see at a glance."""

    jobs: dict[State, int]
    """The project's, in every state that is not an end."""
    busy_workers: int
    """Of the deployment: those that are at work on a job."""
    workers: int | None
    """Of the deployment: all that were heard lately; None if Valkey cannot be asked."""


def overview(resources: Resources, principal: Principal) -> Overview:
    """Cheap whatever the tables hold, as below."""
    with resources.database.transaction() as transaction:
        jobs = backlog.count_of_project(transaction, principal.project_id)
        busy = backlog.count_workers(transaction)
    return Overview(jobs=jobs, busy_workers=busy, workers=_workers_heard(resources, busy))


def _workers_heard(resources: Resources, busy: int) -> int | None:
    """At least those that hold leases."""
    try:
        return max(resources.workers.count(), busy)
    except BrokerUnavailableError:
        return None


def measure_backlog(resources: Resources) -> Backlog:
    """Cheap whatever the tables hold: only rows of live jobs and unsent messages are counted."""
    with resources.database.transaction() as transaction:
        messages, oldest = backlog.count_messages(transaction)
        return Backlog(
            jobs=backlog.count_live_jobs(transaction),
            messages=messages,
            oldest_message_seconds=oldest,
        )
