"""Delivery of messages to the broker after their transaction, also after broker outages."""

from __future__ import annotations

from app.adapters.database import jobs, outbox
from app.domain.errors import BrokerUnavailableError, ServiceError
from app.services.resources import Resources
from app.telemetry import get_logger

_BATCH = 100
_log = get_logger(__name__)


def dispatch(resources: Resources) -> int:
    """Send pending messages and remove their rows; return how many.

    A crash in between sends a message twice, which is harmless. Messages that the broker does not
    accept stay for the next call.
    """
    sent: list[int] = []
    with resources.database.transaction() as transaction:
        for message in outbox.lock_pending(transaction, _BATCH):
            try:
                resources.queue.wake(message.job_id)
            except BrokerUnavailableError:
                _log.debug("broker_unavailable", job_id=message.job_id)
                break
            sent.append(message.id)
        if sent:
            outbox.remove(transaction, sent)
    return len(sent)


def dispatch_soon(resources: Resources) -> None:
    """Dispatch once right after a request; the sweeper retries if this fails."""
    try:
        dispatch(resources)
    except ServiceError as error:
        _log.debug("dispatch_postponed", code=error.code)


def remind(resources: Resources) -> int:
    """Queue another message for jobs that wait long: the broker may have lost the first."""
    with resources.database.transaction() as transaction:
        waiting = jobs.due_for_hint(transaction, _BATCH)
        for job_id in waiting:
            outbox.add(transaction, job_id)
    return len(waiting)
