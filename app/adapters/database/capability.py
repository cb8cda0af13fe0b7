"""Conditions on the queued jobs that a device may claim, as SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from sqlalchemy import ColumnElement, Integer, and_, case, cast, false, func, or_

from app.adapters.database.tables import jobs
from app.domain.worker import ANY_DTYPE, Device, DeviceChoice
from intraslice_core.config import ComputeDtype

_NAME = func.coalesce(jobs.c.compression["device"].astext, DeviceChoice.AUTO.value)
DEVICES = func.coalesce(cast(jobs.c.compression["devices"].astext, Integer), 1)
"""Number of equal devices of one worker that a job asks for; more than one are GPUs."""
# Jobs of earlier releases name devices as torch does: see `requested_device`.
_ASKS_FOR_GPU = or_(
    func.split_part(_NAME, ":", 1).in_((DeviceChoice.GPU.value, "cuda")), DEVICES > 1
)
_ASKS_FOR_CPU = _NAME.in_((DeviceChoice.CPU.value,))
_DTYPE = func.coalesce(jobs.c.compression["dtype"].astext, ANY_DTYPE)
_NEEDED_BYTES = func.coalesce(jobs.c.gpu_bytes, 0)
_NONE = -1


def can_run(device: Device, registered: Iterable[Device], total: int = 1) -> ColumnElement[bool]:
    """Return the condition that equal devices of a worker, all free, may claim a job.

    A CPU takes what does not ask for a GPU. A GPU takes what fits it. Only where no worker without
    GPUs is registered, it also takes what asks for a CPU, and jobs on `auto` that fit no GPU: they
    run on its host's CPU, and would wait for ever otherwise.

    Args:
        device: the device of the claiming slots.
        registered: devices of all live workers.
        total: number of such devices that the worker has.
    """
    if device.kind == "cpu":
        return ~_ASKS_FOR_GPU
    fits = and_(~_ASKS_FOR_CPU, _largest([device]) >= _NEEDED_BYTES, total >= DEVICES)
    return or_(fits, and_(~_ASKS_FOR_GPU, _lacks_a_device(tuple(registered))))


def _lacks_a_device(registered: Sequence[Device]) -> ColumnElement[bool]:
    """Return the condition that no CPU worker and no GPU is there for a job on `cpu` or `auto`."""
    if any(device.kind == "cpu" for device in registered):
        return false()
    return or_(_ASKS_FOR_CPU, _largest(registered) < _NEEDED_BYTES)


def _largest(gpus: Sequence[Device]) -> ColumnElement[int]:
    """Return the memory of the largest GPU that computes in the job's dtype, in bytes."""
    sizes = {
        dtype: max((gpu.memory_bytes for gpu in gpus if gpu.computes(dtype)), default=_NONE)
        for dtype in get_args(ComputeDtype)
    }
    return case(sizes, value=_DTYPE, else_=_NONE)
