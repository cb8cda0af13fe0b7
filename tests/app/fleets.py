"""Workers with devices of any size, registered without their processes."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import text

from app.domain.identifiers import new_job_id
from app.domain.job import JobRecord
from app.domain.principal import OPERATOR
from app.domain.worker import GIB, Device, Registration, RequiredMemory, Slot
from app.services import fleet, jobs
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig
from tests.app.builders import make_request

HOST_BYTES = 128 * GIB
"""Memory of the hosts of GPUs, and of a worker on a CPU without another size."""


def cpu(gib: int, *, jobs_at_once: int = 1) -> Device:
    """Return the CPU of a host with so much memory."""
    return Device(
        kind="cpu",
        name="cpu x 4",
        memory_bytes=gib * GIB,
        dtypes=("float32", "bfloat16", "float16"),
        jobs_at_once=jobs_at_once,
    )


CPU = cpu(HOST_BYTES // GIB)


def gpu(gib: int, *, bfloat16: bool = True) -> Device:
    """Return a GPU with so much memory."""
    dtypes = ("float32", "bfloat16", "float16") if bfloat16 else ("float32", "float16")
    return Device(kind="gpu", name=f"GPU {gib}", memory_bytes=gib * GIB, dtypes=dtypes)


def slots(*devices: Device) -> tuple[Slot, ...]:
    """Return one slot for each device."""
    return tuple(
        Slot(number=number, device=device, visible_devices=str(number))
        for number, device in enumerate(devices)
    )


def registration(worker_id: str, *devices: Device) -> Registration:
    """Return the registration of a worker; its host has the memory of its CPU, if it has one."""
    hosts = [device.memory_bytes for device in devices if device.kind == "cpu"]
    return Registration.of(worker_id, "0.1.0", max(hosts, default=HOST_BYTES), slots(*devices))


def register(resources: Resources, worker_id: str, *devices: Device) -> None:
    """Register a worker, or extend its registration, for longer than a test takes."""
    made = registration(worker_id, *devices)
    settings = resources.settings.model_copy(update={"maintenance_seconds": 600.0})
    fleet.register(replace(resources, settings=settings), made)


def with_long_leases(resources: Resources) -> Resources:
    """Return resources whose claims last longer than a test takes."""
    settings = resources.settings.model_copy(update={"lease_seconds": 600.0})
    return replace(resources, settings=settings)


def miss_heartbeats(resources: Resources, worker_id: str) -> None:
    """Let the worker's registration expire."""
    statement = "UPDATE workers SET expires_at = now() - interval '1 s' WHERE id = :id"
    with resources.database.transaction() as transaction:
        transaction.execute(text(statement), {"id": worker_id})


def enqueue(
    resources: Resources,
    *,
    device: str = "auto",
    dtype: str = "auto",
    gib: int | None = None,
    host_gib: int | None = None,
    priority: int = 5,
    devices: int = 1,
) -> JobRecord:
    """Queue a job that needs so much memory on each GPU or its host; None if it is not known."""
    settings = {"device": device, "dtype": dtype, "devices": devices}
    compression = CompressionConfig.model_validate(settings)
    request = make_request(compression=compression, priority=priority)
    memory = RequiredMemory(gpu_bytes=gib and gib * GIB, host_bytes=host_gib and host_gib * GIB)
    with resources.database.transaction() as transaction:
        return jobs.enqueue_job(
            resources, transaction, OPERATOR, new_job_id(), request, memory=memory
        )
