"""When a job would start, were it created now."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.adapters.database import queue_positions, workers
from app.adapters.database.queue_positions import Occupant
from app.domain.validation import QueueForecast
from app.domain.worker import DevicePosition, Registration, Requirement, usable_devices
from app.services.resources import Resources


def forecast(
    resources: Resources, project_id: str, priority: int, requirement: Requirement
) -> QueueForecast:
    """Return the queue that a new job of this priority and requirement would enter."""
    with resources.database.transaction() as transaction:
        registered = workers.live_registrations(transaction)
        ahead = queue_positions.count_ahead(transaction, priority)
        occupants = queue_positions.running(transaction)
    usable = usable_devices(requirement, registered)
    if requirement.devices > 1 or not _share_a_queue(usable, registered):
        return QueueForecast(jobs_ahead=ahead, seconds=None)
    places = sum(device.jobs_at_once for device in usable.values())
    left = _times_left(project_id, usable, occupants)
    return QueueForecast(jobs_ahead=ahead, seconds=_seconds(places, ahead, left))


def _share_a_queue(usable: Collection[DevicePosition], registered: Sequence[Registration]) -> bool:
    """Return whether the jobs ahead may be assumed to wait for the devices that a job can use.

    With CPUs and GPUs of which the job cannot use all, those ahead may run on the others.
    """
    devices = [device for worker in registered for device in worker.devices]
    is_uniform = len({device.kind for device in devices}) == 1
    return bool(usable) and (is_uniform or len(usable) == len(devices))


def _times_left(
    project_id: str, usable: Collection[DevicePosition], occupants: Sequence[Occupant]
) -> list[float | None]:
    """Return the remaining time of the job on each occupied place of the usable devices.

    None where it is not known, or is not revealed because the job is of another project.
    """
    return [
        job.seconds_left if job.project_id == project_id else None
        for job in occupants
        for number in job.devices
        if (job.worker, number) in usable
    ]


def _seconds(places: int, ahead: int, left: Sequence[float | None]) -> float | None:
    """Return the time until a place becomes free for a job behind `ahead` others, if it is known.

    Args:
        places: jobs that the usable devices run at once.
        ahead: queued jobs before it.
        left: remaining time of each job that runs on them; None where it is not known.
    """
    waits_for = ahead - (places - len(left))
    if waits_for < 0:
        return 0.0
    times = sorted(seconds for seconds in left if seconds is not None)
    is_known = len(times) == len(left) and waits_for < len(times)
    return times[waits_for] if is_known else None
