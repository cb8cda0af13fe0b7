"""Workers and their devices, the device that a job requires, and why a queued job waits.

A job asks for a kind of device, `auto`, `cpu` or `gpu`, and for a number of them; which worker and
which of its GPUs runs it is decided by the claim. A job on `auto` runs on a GPU that fits, or else
on a CPU whose host has the memory. A job on several devices takes equal GPUs of one worker, also on
`auto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field

from app.domain.lifecycle import State
from app.domain.resource import ApiModel
from intraslice_core.config import CompressionSettings
from intraslice_core.progress import Stage

GIB = 2**30
ANY_DTYPE = "auto"
DevicePosition = tuple[str, int]
"""Id of a worker and position of a device in its registration."""


class DeviceChoice(StrEnum):
    """Kind of device that a job asks for."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


DEVICE_NAMES = (*DeviceChoice, "cuda")
"""Values of `compression.device` that the API accepts; `cuda` is the earlier name of `gpu`."""


def requested_device(name: str) -> DeviceChoice:
    """Return the kind of device of a stored job.

    Jobs of earlier releases name devices as torch does. The index of `cuda:1` is ignored: a worker
    shows each job one GPU.
    """
    if name.partition(":")[0] in (DeviceChoice.GPU, "cuda"):
        return DeviceChoice.GPU
    return DeviceChoice.CPU if name == DeviceChoice.CPU else DeviceChoice.AUTO


@dataclass(frozen=True, kw_only=True)
class RequiredMemory:
    """Memory that a job needs, estimated when it is created; None where it is not known."""

    gpu_bytes: int | None = None
    """On each GPU."""
    host_bytes: int | None = None
    """On a host whose CPU runs the job."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Kind, number, dtype and memory of the devices that can run a job."""

    device: DeviceChoice
    dtype: str
    """Compute dtype; `auto` is available everywhere."""
    memory: RequiredMemory
    devices: int = 1
    """Number of equal devices of one worker; more than one are GPUs."""

    @classmethod
    def of(cls, compression: CompressionSettings, memory: RequiredMemory) -> Self:
        """Return the requirement of a job's settings and its estimated memory."""
        settings = (compression.device, compression.dtype, compression.devices)
        return cls.named(*settings, memory=memory)

    @classmethod
    def named(cls, device: str, dtype: str, devices: int, *, memory: RequiredMemory) -> Self:
        """Return the requirement of a job by the names of its device and dtype."""
        kind = requested_device(device) if devices == 1 else DeviceChoice.GPU
        return cls(device=kind, dtype=dtype, memory=memory, devices=devices)


class RunningJob(ApiModel):
    """A job that a device runs; other projects' jobs have neither id nor progress."""

    job_id: str | None = Field(description="Null for a job of another project.")
    state: State
    stage: Stage | None
    fraction: float | None
    memory_bytes: int | None = Field(
        default=None,
        description="Memory of the host that the job's processes hold; pages that several share "
        "count in each. Null under all devices of a job but the first.",
    )
    gpu_memory_bytes: int | None = Field(
        default=None,
        description="Memory that the job's process has reserved on its GPU; null on a CPU, and on "
        "several GPUs, on which further processes compute.",
    )
    claimed_at: datetime | None


class Device(ApiModel):
    """A device on which a worker runs jobs."""

    kind: Literal["cpu", "gpu"]
    name: str = Field(description="Model of the GPU, or `cpu x` and the number of CPUs.")
    memory_bytes: int = Field(description="Memory of the GPU; host memory of a CPU.")
    dtypes: tuple[str, ...] = Field(
        description="Compute dtypes that jobs may ask for on this device."
    )
    jobs_at_once: int = 1
    jobs: tuple[RunningJob, ...] = Field(default=(), description="Jobs that run on it now.")

    def computes(self, dtype: str) -> bool:
        """Return whether the device computes in a dtype; `auto` selects one of its own."""
        return dtype == ANY_DTYPE or dtype in self.dtypes

    def fits(self, requirement: Requirement) -> bool:
        """Return whether the device is a GPU that meets the requirement."""
        needed = requirement.memory.gpu_bytes or 0
        return (
            self.kind == "gpu" and self.computes(requirement.dtype) and needed <= self.memory_bytes
        )


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Place for one job at a time on a device of a worker."""

    number: int
    """Position of the device in the worker's registration."""
    device: Device
    visible_devices: str | None = None
    """Value of CUDA_VISIBLE_DEVICES for the job's process; None leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class FreeSlots:
    """Free slots on equal devices of a worker, for a claim."""

    slots: tuple[Slot, ...]
    """At least one; a job takes the first of them, as many as it asks for devices."""
    total: int
    """Number of the worker's slots on such devices, free or not."""

    @property
    def device(self) -> Device:
        """Return the device of every slot."""
        return self.slots[0].device

    @classmethod
    def of(cls, *slots: Slot) -> Self:
        """Return all slots of a worker that runs nothing."""
        return cls(slots=slots, total=len(slots))


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Devices and host memory of a worker, as it registers them."""

    id: str
    """Owner of the worker's leases."""
    version: str
    host_memory_bytes: int
    devices: tuple[Device, ...]

    @classmethod
    def of(
        cls, worker_id: str, version: str, host_memory_bytes: int, slots: Sequence[Slot]
    ) -> Self:
        """Return the registration of a worker with these slots."""
        devices = {slot.number: slot.device for slot in slots}
        return cls(
            id=worker_id,
            version=version,
            host_memory_bytes=host_memory_bytes,
            devices=tuple(devices[number] for number in sorted(devices)),
        )


class Worker(ApiModel):
    """A registered worker, its devices and the jobs that they run."""

    object: Literal["worker"] = "worker"
    id: str = Field(description="Host, process and a random part; events of jobs name it.")
    version: str
    started_at: datetime
    seen_at: datetime = Field(description="Time of its last heartbeat.")
    silent: bool = Field(
        default=False,
        description="True if heartbeats are missing: it is removed if they do not return.",
    )
    host_memory_bytes: int
    devices: tuple[Device, ...]


class WaitingCode(StrEnum):
    """Reason why no registered worker can run a job."""

    NO_WORKER = "no_worker"
    NO_GPU = "no_gpu"
    GPU_DTYPE = "gpu_dtype"
    GPU_MEMORY = "gpu_memory"
    GPU_COUNT = "gpu_count"
    HOST_MEMORY = "host_memory"


class Waiting(ApiModel):
    """Reason why a queued job waits although it may be its turn; gone once a worker fits."""

    code: WaitingCode
    message: str
    gpu_bytes: int | None = Field(
        default=None, description="Memory that the job needs on a GPU, where that is the reason."
    )
    host_bytes: int | None = Field(
        default=None, description="Memory that the job needs on a CPU, where that is the reason."
    )


def waiting_reason(requirement: Requirement, workers: Iterable[Registration]) -> Waiting | None:
    """Return why none of the registered workers can run a job; None if one can.

    Args:
        requirement: what the job requires.
        workers: all live workers, busy or not.
    """
    registered = tuple(workers)
    if not registered:
        return Waiting(code=WaitingCode.NO_WORKER, message="waiting: no worker is registered")
    if requirement.device is DeviceChoice.GPU:
        return _lacking_gpus(requirement, [worker.devices for worker in registered])
    devices = [device for worker in registered for device in worker.devices]
    may_use_gpu = requirement.device is DeviceChoice.AUTO
    if may_use_gpu and any(device.fits(requirement) for device in devices):
        return None
    needed = requirement.memory.host_bytes or 0
    if needed <= max(worker.host_memory_bytes for worker in registered):
        return None
    return Waiting(
        code=WaitingCode.HOST_MEMORY,
        message=f"waiting: no worker with {_at_least(needed)} of memory",
        host_bytes=needed,
    )


def usable_devices(
    requirement: Requirement, workers: Iterable[Registration]
) -> dict[DevicePosition, Device]:
    """Return the devices that may run a job of one device, as the conditions of the claim decide.

    A GPU whose host's CPU would run the job counts where no other device can run it.

    Args:
        requirement: what the job requires.
        workers: all live workers, busy or not.

    Returns:
        The devices by their positions; none where `waiting_reason` names a reason.
    """
    requested = requirement.device
    needed = requirement.memory.host_bytes or 0
    fitting: dict[DevicePosition, Device] = {}
    hosting: dict[DevicePosition, Device] = {}
    for worker in workers:
        has_memory = requested is not DeviceChoice.GPU and needed <= worker.host_memory_bytes
        for number, device in enumerate(worker.devices):
            on_gpu = requested is not DeviceChoice.CPU and device.fits(requirement)
            if on_gpu or (device.kind == "cpu" and has_memory):
                fitting[worker.id, number] = device
            elif has_memory:
                hosting[worker.id, number] = device
    return fitting or hosting


def _lacking_gpus(
    requirement: Requirement, workers: Sequence[tuple[Device, ...]]
) -> Waiting | None:
    """Return why the devices of no worker can run a job that asks for GPUs; None if some can."""
    gpus = [device for devices in workers for device in devices if device.kind == "gpu"]
    if not gpus:
        return Waiting(code=WaitingCode.NO_GPU, message="waiting: no worker with a GPU")
    able = [gpu for gpu in gpus if gpu.computes(requirement.dtype)]
    if not able:
        message = f"waiting: no worker with a GPU that computes in {requirement.dtype}"
        return Waiting(code=WaitingCode.GPU_DTYPE, message=message)
    fitting = [gpu for gpu in able if gpu.fits(requirement)]
    needed = requirement.memory.gpu_bytes or 0
    suffix = f" that computes in {requirement.dtype}" if len(able) < len(gpus) else ""
    if not fitting:
        return Waiting(
            code=WaitingCode.GPU_MEMORY,
            message=f"waiting: no worker with a GPU of {_at_least(needed)}{suffix}",
            gpu_bytes=needed,
        )
    if any(devices.count(gpu) >= requirement.devices for devices in workers for gpu in fitting):
        return None
    of_size = f" of {_at_least(needed)}" if len(fitting) < len(able) else ""
    plural = suffix.replace("computes", "compute")
    return Waiting(
        code=WaitingCode.GPU_COUNT,
        message=f"waiting: no worker with {requirement.devices} equal GPUs{of_size}{plural}",
    )


def _at_least(needed: int) -> str:
    return f"≥ {math.ceil(needed / GIB)} GiB"
