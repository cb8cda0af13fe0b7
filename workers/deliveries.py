"""Sends webhooks, in threads of the worker's own: a slow receiver must not hold up the sweep.

The rows are the truth. Workers ask for due ones every `sweep_seconds`, without any message.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import ServiceError
from app.domain.webhook import DueDelivery
from app.services import deliveries
from app.services.resources import Resources
from app.telemetry import get_logger

_AT_ONCE = 8
_log = get_logger(__name__)


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


class DeliveryLoop:
    """Rounds without a pause while something is due."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="deliveries")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the tries that are under way; each ends within the webhooks' timeout."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            if not self._round():
                self._done.wait(self._resources.settings.sweep_seconds)

    def _round(self) -> int:
        try:
            return send_due(self._resources)
        except ServiceError as error:
            _log.warning("deliveries_failed", code=error.code)
        except Exception:
            # The thread must outlive a bug; what was not recorded is tried again.
            _log.exception("deliveries_crashed")
        return 0
