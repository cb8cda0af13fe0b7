"""Thin Celery tasks."""

from __future__ import annotations

import threading

from app.adapters.queue import WAKE_TASK
from app.services.resources import Resources
from workers.runner import run_job


def register_tasks(resources: Resources, owner: str, stopping: threading.Event) -> None:
    """Tell the Celery application what a wake-up hint means here."""

    @resources.celery.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]  # Celery has no types
    def wake(job_id: str) -> None:
        """Work on the job, if it is still there to be had."""
        if not stopping.is_set():
            run_job(resources, job_id, owner, stopping)
