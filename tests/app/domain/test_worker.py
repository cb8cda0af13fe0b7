"""Devices that jobs ask for, and the reasons why no worker can run one."""

from __future__ import annotations

import pytest

from app.domain.worker import (
    GIB,
    Device,
    DeviceChoice,
    Registration,
    RequiredMemory,
    Requirement,
    Slot,
    requested_device,
    usable_devices,
    waiting_reason,
)
from tests.app.fleets import CPU, HOST_BYTES, cpu, gpu, registration


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("auto", DeviceChoice.AUTO),
        ("cpu", DeviceChoice.CPU),
        ("gpu", DeviceChoice.GPU),
        ("cuda", DeviceChoice.GPU),
        ("cuda:1", DeviceChoice.GPU),
        ("something else", DeviceChoice.AUTO),
    ],
)
def test_stored_names_of_devices_are_kinds(name: str, choice: DeviceChoice) -> None:
    assert requested_device(name) is choice


def needs(
    device: str,
    gib: float | None = None,
    dtype: str = "auto",
    *,
    devices: int = 1,
    host_gib: float | None = None,
) -> Requirement:
    gpu_bytes, host_bytes = (None if size is None else int(size * GIB) for size in (gib, host_gib))
    memory = RequiredMemory(gpu_bytes=gpu_bytes, host_bytes=host_bytes)
    return Requirement.named(device, dtype, devices, memory=memory)


OLD = gpu(80, bfloat16=False)


def fleet_of(devices: list[Device]) -> list[Registration]:
    """Return workers with one of the devices each."""
    return [registration(f"worker-{number}", device) for number, device in enumerate(devices)]


@pytest.mark.parametrize(
    ("requirement", "devices", "message"),
    [
        (needs("auto"), [], "waiting: no worker is registered"),
        (needs("gpu"), [], "waiting: no worker is registered"),
        (needs("gpu"), [CPU], "waiting: no worker with a GPU"),
        (needs("gpu", 40), [CPU, gpu(24)], "waiting: no worker with a GPU of ≥ 40 GiB"),
        (needs("gpu", 39.2), [gpu(24)], "waiting: no worker with a GPU of ≥ 40 GiB"),
        (
            needs("gpu", 1, "bfloat16"),
            [OLD],
            "waiting: no worker with a GPU that computes in bfloat16",
        ),
        (
            needs("gpu", 40, "bfloat16"),
            [OLD, gpu(24)],
            "waiting: no worker with a GPU of ≥ 40 GiB that computes in bfloat16",
        ),
        (needs("cpu", host_gib=31.5), [cpu(31)], "waiting: no worker with ≥ 32 GiB of memory"),
        (
            needs("auto", 24, host_gib=200),
            [cpu(64), gpu(16)],
            "waiting: no worker with ≥ 200 GiB of memory",
        ),
    ],
)
def test_the_reason_names_what_is_missing(
    requirement: Requirement, devices: list[Device], message: str
) -> None:
    reason = waiting_reason(requirement, fleet_of(devices))
    assert reason is not None
    assert reason.message == message
    assert usable_devices(requirement, fleet_of(devices)) == {}


PAIR = [gpu(24), gpu(24)]


@pytest.mark.parametrize(
    ("requirement", "workers", "message"),
    [
        (needs("auto", devices=2), [[CPU]], "waiting: no worker with a GPU"),
        (needs("gpu", 40, devices=2), [PAIR], "waiting: no worker with a GPU of ≥ 40 GiB"),
        (needs("auto", 10, devices=2), [[gpu(24)]], "waiting: no worker with 2 equal GPUs"),
        (needs("gpu", 10, devices=2), [[gpu(24)]] * 2, "waiting: no worker with 2 equal GPUs"),
        (needs("gpu", 10, devices=3), [PAIR], "waiting: no worker with 3 equal GPUs"),
        (needs("gpu", 10, devices=2), [[gpu(24), gpu(80)]], "waiting: no worker with 2 equal GPUs"),
        (
            needs("gpu", 40, devices=2),
            [[*PAIR, gpu(80)]],
            "waiting: no worker with 2 equal GPUs of ≥ 40 GiB",
        ),
        (
            needs("gpu", 10, "bfloat16", devices=2),
            [[gpu(24), OLD, OLD]],
            "waiting: no worker with 2 equal GPUs that compute in bfloat16",
        ),
    ],
)
def test_a_job_on_several_devices_waits_for_equal_gpus_of_one_worker(
    requirement: Requirement, workers: list[list[Device]], message: str
) -> None:
    fleet = [registration(f"worker-{number}", *own) for number, own in enumerate(workers)]
    reason = waiting_reason(requirement, fleet)
    assert reason is not None
    assert reason.message == message
    assert waiting_reason(requirement, [*fleet, registration("large", *[gpu(80)] * 3)]) is None


@pytest.mark.parametrize(
    ("requirement", "devices"),
    [
        (needs("gpu", 40), [gpu(24), gpu(40)]),
        (needs("gpu"), [gpu(8)]),
        (needs("gpu", 40, "float32"), [OLD]),
        (needs("cpu", 400), [CPU]),
        (needs("cpu", 400), [gpu(8)]),
        (needs("auto", 400), [CPU]),
        (needs("auto", 400), [gpu(8)]),
        (needs("cpu", host_gib=64), [cpu(32), cpu(64)]),
        (needs("cpu", host_gib=HOST_BYTES / GIB), [cpu(32), gpu(8)]),
        (needs("auto", 8, host_gib=400), [cpu(32), gpu(8)]),
        (needs("gpu", 8, host_gib=400), [gpu(8)]),
    ],
)
def test_a_job_that_a_device_can_run_has_no_reason_to_wait(
    requirement: Requirement, devices: list[Device]
) -> None:
    assert waiting_reason(requirement, fleet_of(devices)) is None
    assert usable_devices(requirement, fleet_of(devices))


def test_a_registration_has_each_device_once_in_the_order_of_its_slots() -> None:
    first, second = gpu(24), gpu(80)
    slots = [
        Slot(number=1, device=second),
        Slot(number=0, device=first),
        Slot(number=0, device=first),
    ]
    made = Registration.of("worker-1", "0.1.0", 1, slots)
    assert made.devices == (first, second)
