"""Devices that jobs ask for, and the reasons why no worker can run one."""

from __future__ import annotations

import pytest

from app.domain.worker import (
    GIB,
    Device,
    DeviceChoice,
    Registration,
    Requirement,
    Slot,
    requested_device,
    waiting_reason,
)
from tests.app.fleets import CPU, gpu


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
    device: str, gib: float | None = None, dtype: str = "auto", devices: int = 1
) -> Requirement:
    size = None if gib is None else int(gib * GIB)
    return Requirement.named(device, dtype, devices, gpu_bytes=size)


OLD = gpu(80, bfloat16=False)


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
    ],
)
def test_the_reason_names_what_is_missing(
    requirement: Requirement, devices: list[Device], message: str
) -> None:
    reason = waiting_reason(requirement, [devices])
    assert reason is not None
    assert reason.message == message


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
    reason = waiting_reason(requirement, workers)
    assert reason is not None
    assert reason.message == message
    assert waiting_reason(requirement, [*workers, [gpu(80)] * 3]) is None


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
    ],
)
def test_a_job_that_a_device_can_run_has_no_reason_to_wait(
    requirement: Requirement, devices: list[Device]
) -> None:
    assert waiting_reason(requirement, [devices]) is None


def test_a_registration_has_each_device_once_in_the_order_of_its_slots() -> None:
    first, second = gpu(24), gpu(80)
    slots = [
        Slot(number=1, device=second),
        Slot(number=0, device=first),
        Slot(number=0, device=first),
    ]
    made = Registration.of("worker-1", "0.1.0", 1, slots)
    assert made.devices == (first, second)
