"""Devices of this worker: the GPUs that `INTRASLICE_WORKER_DEVICES` selects, or the CPU.

A worker on a CPU runs `worker_concurrency` jobs at once, a GPU one. The process of a job sees the
GPUs of its slots alone, by CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.domain.job import JobRecord
from app.domain.worker import Device, DeviceChoice, Requirement, Slot
from app.settings import Settings
from app.settings.types import ALL_DEVICES, CPU_ONLY
from app.telemetry import get_logger
from intraslice_core.errors import ConfigurationError
from intraslice_core.host_limit import host_memory_bytes
from workers.child_process import environment, visible_device

PROBE: Sequence[str] = (sys.executable, "-P", "-m", "workers.device_probe")
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")))
"""Files of GPU drivers: of NVIDIA, AMD, WSL and Tegra. Without any, torch need not be asked."""
_PROBE_SECONDS = 180.0
_NO_GPU = ""
"""Value of CUDA_VISIBLE_DEVICES that hides every GPU."""
_SETTING = "INTRASLICE_WORKER_DEVICES"
_CPU_DTYPES = ("float32", "bfloat16", "float16")
_GPUS: TypeAdapter[tuple[Device, ...]] = TypeAdapter(tuple[Device, ...])
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Device of one attempt, in the engine's terms."""

    device: str
    """Value of the setting `device`."""
    visible_devices: str | None
    """Value of CUDA_VISIBLE_DEVICES for the job's process; None leaves it as it is."""


def find_slots(settings: Settings) -> tuple[Slot, ...]:
    """Return the worker's slots: one for each selected GPU, or those of the CPU.

    Raises:
        ConfigurationError: if a selected GPU does not exist, or the GPUs cannot be listed.
    """
    selected = settings.worker_devices
    if selected == CPU_ONLY:
        return cpu_slots(settings.worker_concurrency, visible_devices=_NO_GPU)
    if selected == ALL_DEVICES and not any(driver.exists() for driver in DRIVERS):
        return cpu_slots(settings.worker_concurrency)
    gpus = _probe()
    if selected == ALL_DEVICES and not gpus:
        _log.warning("no_gpu_for_torch", effect="jobs run on the CPU: is torch built for GPUs?")
        return cpu_slots(settings.worker_concurrency)
    numbers = settings.worker_gpu_numbers or tuple(range(len(gpus)))
    absent = [number for number in numbers if number >= len(gpus)]
    if absent:
        raise ConfigurationError(
            f"there is no GPU {absent[0]}: torch sees {len(gpus)} on this machine",
            field=_SETTING,
            hint="write numbers from 0 on, separated by commas, or all, or cpu",
        )
    return tuple(
        Slot(number=position, device=gpus[number], visible_devices=visible_device(number))
        for position, number in enumerate(numbers)
    )


def cpu_slots(concurrency: int, *, visible_devices: str | None = None) -> tuple[Slot, ...]:
    """Return the slots of a worker that runs so many jobs at once on the CPU."""
    device = Device(
        kind="cpu",
        name=f"cpu x {_cpus()}",
        memory_bytes=host_memory_bytes(),
        dtypes=_CPU_DTYPES,
        jobs_at_once=concurrency,
    )
    return (Slot(number=0, device=device, visible_devices=visible_devices),) * concurrency


def place(job: JobRecord, slots: Sequence[Slot]) -> Placement:
    """Return the device of an attempt at a job that was claimed for slots, one for each device.

    A job on `auto` that does not fit the slot's GPU runs on the host's CPU. Without slots it runs
    on the default device.
    """
    if not slots or slots[0].device.kind == "cpu":
        visible = slots[0].visible_devices if slots else None
        return Placement(device=job.compression.device, visible_devices=visible)
    requirement = Requirement.of(job.compression, job.memory)
    fits = requirement.device is DeviceChoice.AUTO and slots[0].device.fits(requirement)
    if fits or requirement.device is DeviceChoice.GPU:
        names = [slot.visible_devices for slot in slots if slot.visible_devices is not None]
        return Placement(device="cuda", visible_devices=",".join(names) or None)
    return Placement(device="cpu", visible_devices=_NO_GPU)


def _cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _probe() -> tuple[Device, ...]:
    """Return the GPUs that torch sees, in the order of its indices.

    Raises:
        ConfigurationError: if the probe fails, does not end, or prints something else.
    """
    try:
        done = subprocess.run(
            PROBE, env=environment(None), capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
        if done.returncode == 0:
            return _GPUS.validate_json(done.stdout)
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_PROBE_SECONDS:g} s"
    except ValidationError as error:
        reason = f"unexpected answer: {error.errors()[0]['msg']}"
    raise ConfigurationError(
        f"the GPUs of this machine cannot be listed: {reason}",
        field=_SETTING,
        hint="check the driver with nvidia-smi, or set it to cpu",
    )
