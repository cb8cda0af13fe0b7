"""Thin Celery tasks."""

from __future__ import annotations

import threading

from app.adapters.queue import WAKE_TASK
from app.services.resources import Resources
from workers.runner import run_next_job


def register_tasks(resources: Resources, owner: str, stopping: threading.Event) -> None:
    """Tell the Celery application what a wake-up hint means here."""

    @resources.celery.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]  # Celery has no types
    def wake(_job_id: str) -> None:
        """There is work: take the most urgent, whichever job was hinted at, while any waits."""
        while not stopping.is_set() and run_next_job(resources, owner, stopping):
            continue
