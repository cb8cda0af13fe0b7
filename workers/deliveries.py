"""Sends webhooks, in threads of the worker's own: a slow receiver must not hold up the sweep.

The rows are the truth. Workers ask for due ones every `maintenance_seconds`, without any message.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from app.domain.webhook import DueDelivery
from app.services import deliveries
from app.services.resources import Resources

_AT_ONCE = 8


def send_due(resources: Resources) -> int:
    """One round: at most one delivery for each webhook; the number of tries made."""
    due = deliveries.claim_due(resources, _AT_ONCE)
    if not due:
        return 0
    with ThreadPoolExecutor(max_workers=len(due), thread_name_prefix="webhook") as pool:
        for future in [pool.submit(deliver, resources, one) for one in due]:
            future.result()
    return len(due)


def deliver(resources: Resources, due: DueDelivery) -> None:
    deliveries.record(resources, due, deliveries.send(resources, due))
