"""Conditions on the queued jobs that a device may claim, as SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from sqlalchemy import ColumnElement, Integer, and_, case, cast, func, or_

from app.adapters.database.tables import jobs
from app.domain.worker import ANY_DTYPE, Device, DeviceChoice, Registration
from intraslice_core.config import ComputeDtype

_NAME = func.coalesce(jobs.c.compression["device"].astext, DeviceChoice.AUTO.value)
DEVICES = func.coalesce(cast(jobs.c.compression["devices"].astext, Integer), 1)
"""Number of equal devices of one worker that a job asks for; more than one are GPUs."""
# Jobs of earlier releases name devices as torch does: see `requested_device`.
_NAMES_A_GPU = func.split_part(_NAME, ":", 1).in_((DeviceChoice.GPU.value, "cuda"))
_ASKS_FOR_CPU = _NAME.in_((DeviceChoice.CPU.value,))
_DTYPE = func.coalesce(jobs.c.compression["dtype"].astext, ANY_DTYPE)
_GPU_BYTES = func.coalesce(jobs.c.gpu_bytes, 0)
_HOST_BYTES = func.coalesce(jobs.c.host_bytes, 0)
_NONE = -1


def can_run(
    device: Device,
    registered: Iterable[Registration],
    host_bytes: int,
    devices: ColumnElement[int],
) -> ColumnElement[bool]:
    """Return the condition that a device may claim work.

    It claims a job together with equal devices if the job needs several.

    A CPU takes what does not ask for a GPU and fits the memory of its host. A GPU takes what fits
    it. Only where no worker without GPUs has the memory, it also takes what asks for a CPU, and
    jobs on `auto` that fit no GPU: they run on its host's CPU, and would wait for ever otherwise.

    Args:
        device: the device of the claiming slot.
        registered: all live workers; not considered for a CPU.
        host_bytes: memory of the worker's host.
        devices: number of devices that the work needs; more than one are GPUs.
    """
    on_host = and_(~_NAMES_A_GPU, devices == 1, fits_host(host_bytes))
    if device.kind == "cpu":
        return on_host
    return or_(runs_on(device), and_(on_host, _lacks_a_device(tuple(registered))))


def runs_on(gpu: Device) -> ColumnElement[bool]:
    """Return the condition that a job runs on a GPU that claims it, not on its host's CPU."""
    return and_(~_ASKS_FOR_CPU, _largest([gpu]) >= _GPU_BYTES)


def fits_host(host_bytes: int) -> ColumnElement[bool]:
    """Return the condition that a job needs no more than this memory of a host."""
    return host_bytes >= _HOST_BYTES


def several_fit_a_gpu(registered: Iterable[Registration]) -> ColumnElement[bool]:
    """Return the condition that a job needs several GPUs, and that a live one has their memory."""
    gpus = [gpu for worker in registered for gpu in worker.devices if gpu.kind == "gpu"]
    return and_(DEVICES > 1, _largest(gpus) >= _GPU_BYTES)


def _lacks_a_device(registered: Sequence[Registration]) -> ColumnElement[bool]:
    """Return the condition that neither a CPU worker nor a GPU fits a job on `cpu` or `auto`."""
    devices = [(device, worker) for worker in registered for device in worker.devices]
    hosts = [worker.host_memory_bytes for device, worker in devices if device.kind == "cpu"]
    gpus = [device for device, _ in devices if device.kind == "gpu"]
    return and_(
        max(hosts, default=_NONE) < _HOST_BYTES,
        or_(_ASKS_FOR_CPU, _largest(gpus) < _GPU_BYTES),
    )


def _largest(gpus: Sequence[Device]) -> ColumnElement[int]:
    """Return the memory of the largest GPU that computes in the job's dtype, in bytes."""
    sizes = {
        dtype: max((gpu.memory_bytes for gpu in gpus if gpu.computes(dtype)), default=_NONE)
        for dtype in get_args(ComputeDtype)
    }
    return case(sizes, value=_DTYPE, else_=_NONE)
