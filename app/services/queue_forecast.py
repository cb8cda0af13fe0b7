"""When a job would start, were it created now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from app.adapters.database import queue_positions, workers
from app.adapters.database.queue_positions import Ahead, Occupant
from app.domain.validation import QueueForecast
from app.domain.worker import (
    Device,
    DeviceChoice,
    DevicePosition,
    Registration,
    Requirement,
    usable_devices,
)
from app.services.resources import Resources


def forecast(
    resources: Resources, project_id: str, priority: int, requirement: Requirement
) -> QueueForecast:
    """Return the queue that a new job of this priority and requirement would enter."""
    with resources.database.transaction() as transaction:
        registered = workers.live_registrations(transaction)
        ahead = queue_positions.ahead_of(transaction, priority)
        occupants = queue_positions.running(transaction)
    usable = usable_devices(requirement, registered)
    seconds = None
    if requirement.devices == 1 and _share_a_queue(usable, registered, ahead):
        roomy = _with_room(requirement, usable, registered, ahead, occupants)
        places = sum(device.jobs_at_once for device in roomy.values())
        seconds = _seconds(places, ahead.jobs, _times_left(project_id, roomy, occupants))
        if seconds and len(roomy) < len(usable):
            # The others may become free, and have the memory, before.
            seconds = None
    return QueueForecast(jobs_ahead=ahead.jobs, seconds=seconds)


def _share_a_queue(
    usable: Collection[DevicePosition], registered: Sequence[Registration], ahead: Ahead
) -> bool:
    """Return whether the jobs ahead may be assumed to wait each for one device that a job can use.

    With CPUs and GPUs of which the job cannot use all, those ahead may run on the others. One that
    needs several devices holds up the job until they are free.
    """
    if not usable or ahead.on_several_devices:
        return False
    devices = [device for worker in registered for device in worker.devices]
    is_uniform = len({device.kind for device in devices}) == 1
    return not ahead.jobs or is_uniform or len(usable) == len(devices)


def _with_room(
    requirement: Requirement,
    usable: Mapping[DevicePosition, Device],
    registered: Sequence[Registration],
    ahead: Ahead,
    occupants: Sequence[Occupant],
) -> dict[DevicePosition, Device]:
    """Return the usable devices whose hosts have the memory for the job now, as the claims decide.

    The jobs ahead count in full on each host: any of them may run there.
    """
    needed = (requirement.memory.host_bytes or 0) + ahead.host_bytes
    workers_by_id = {worker.id: worker for worker in registered}

    def has_room(worker: Registration, device: Device) -> bool:
        if _runs_on_gpu(requirement, device) or (device.kind == "cpu" and device.jobs_at_once == 1):
            return True
        total = device.memory_bytes if device.kind == "cpu" else worker.host_memory_bytes
        return needed + _host_bytes_in_use(worker, device, occupants) <= total

    return {
        (worker_id, number): device
        for (worker_id, number), device in usable.items()
        if has_room(workers_by_id[worker_id], device)
    }


def _host_bytes_in_use(worker: Registration, device: Device, occupants: Sequence[Occupant]) -> int:
    """Return the host memory of the worker's jobs; for a GPU, without those that run on GPUs."""

    def counts(job: Occupant) -> bool:
        gpus = (worker.devices[number] for number in job.devices if number < len(worker.devices))
        on_gpu = any(_runs_on_gpu(job.requirement, gpu) for gpu in gpus)
        return job.worker == worker.id and (device.kind == "cpu" or not on_gpu)

    return sum(job.requirement.memory.host_bytes or 0 for job in occupants if counts(job))


def _runs_on_gpu(requirement: Requirement, device: Device) -> bool:
    """Return whether a job that takes this device runs on it as a GPU, not on its host's CPU."""
    return requirement.device is not DeviceChoice.CPU and device.fits(requirement)


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
