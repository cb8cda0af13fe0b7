"""When a job would start, were it created now."""

from __future__ import annotations

from collections.abc import Sequence

from app.adapters.database import queue_positions, workers
from app.adapters.database.queue_positions import Occupant
from app.domain.validation import QueueForecast
from app.services.resources import Resources


def forecast(resources: Resources, project_id: str, priority: int) -> QueueForecast:
    """Return the queue that a new job of this priority would enter, whichever device it needs."""
    with resources.database.transaction() as transaction:
        registered = workers.live_registrations(transaction)
        ahead = queue_positions.count_ahead(transaction, priority)
        occupants = queue_positions.running(transaction)
    places = sum(device.jobs_at_once for worker in registered for device in worker.devices)
    return QueueForecast(jobs_ahead=ahead, seconds=_seconds(project_id, places, ahead, occupants))


def _seconds(
    project_id: str, places: int, ahead: int, occupants: Sequence[Occupant]
) -> float | None:
    """Return the time until a place becomes free for a job behind `ahead` others, if it is known.

    Args:
        project_id: project of the job; the remaining times of others are not revealed.
        places: jobs that all workers run at once.
        ahead: queued jobs before it.
        occupants: jobs that run now.
    """
    if places == 0:
        return None
    waits_for = ahead - (places - len(occupants))
    if waits_for < 0:
        return 0.0
    left = [job.seconds_left if job.project_id == project_id else None for job in occupants]
    times = sorted(seconds for seconds in left if seconds is not None)
    is_known = len(times) == len(occupants) and waits_for < len(times)
    return times[waits_for] if is_known else None
