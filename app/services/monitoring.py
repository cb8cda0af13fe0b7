"""What the database knows of the whole deployment, for whoever collects metrics."""

from __future__ import annotations

from dataclasses import dataclass

from app.adapters.database import backlog
from app.domain.lifecycle import State
from app.services.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Work that is not done yet."""

    jobs: dict[State, int]
    """In every state that is not an end; ended jobs are counted as they end."""
    messages: int
    oldest_message_seconds: float


def measure_backlog(resources: Resources) -> Backlog:
    """Cheap whatever the tables hold: only rows of live jobs and unsent messages are counted."""
    with resources.database.transaction() as transaction:
        messages, oldest = backlog.count_messages(transaction)
        return Backlog(
            jobs=backlog.count_live_jobs(transaction),
            messages=messages,
            oldest_message_seconds=oldest,
        )
