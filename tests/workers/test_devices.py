"""Devices that a worker finds, and the device of each attempt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from app.domain.job import JobRecord
from app.domain.worker import GIB, Device, Slot
from app.settings import Settings
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.host_limit import host_memory_bytes
from tests.app.fleets import CPU, gpu
from workers import child_process, devices
from workers.device_probe import describe_gpus
from workers.devices import Placement, find_slots, place

GPUS = [gpu(24), gpu(80)]


def answering(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Replace the probe by another program, on a machine with a GPU driver."""
    monkeypatch.setattr(devices, "PROBE", (sys.executable, "-c", program))
    monkeypatch.setattr(devices, "DRIVERS", (Path("/"),))


def with_gpus(monkeypatch: pytest.MonkeyPatch, gpus: list[Device] = GPUS) -> None:
    listed = [device.model_dump(mode="json", exclude={"jobs"}) for device in gpus]
    answering(monkeypatch, f"print({json.dumps(listed)!r})")


def of(selection: str, **settings: Any) -> Settings:
    return Settings(worker_devices=selection, **settings)


def test_a_machine_without_a_driver_runs_as_many_jobs_on_the_cpu_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, "raise SystemExit('asked without a driver')")
    monkeypatch.setattr(devices, "DRIVERS", (Path("/no/such/driver"),))
    slots = find_slots(of("all", worker_concurrency=3))
    assert [slot.number for slot in slots] == [0, 0, 0]
    (device,) = {slot.device for slot in slots}
    assert (device.kind, device.jobs_at_once) == ("cpu", 3)
    assert {slot.visible_devices for slot in slots} == {None}
    assert 0 < device.memory_bytes == host_memory_bytes()


def test_every_gpu_is_a_slot_whose_process_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_gpus(monkeypatch)
    slots = find_slots(of("all", worker_concurrency=4))
    assert [slot.device for slot in slots] == GPUS
    assert [(slot.number, slot.visible_devices) for slot in slots] == [(0, "0"), (1, "1")]


def test_numbers_select_gpus_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_gpus(monkeypatch)
    slots = find_slots(of("1, 0"))
    assert [slot.device for slot in slots] == GPUS[::-1]
    assert [(slot.number, slot.visible_devices) for slot in slots] == [(0, "1"), (1, "0")]
    (single,) = find_slots(of("1"))
    assert (single.number, single.visible_devices) == (0, "1")


def test_numbers_count_among_the_gpus_that_the_worker_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5f3a, 6")
    with_gpus(monkeypatch)
    assert [slot.visible_devices for slot in find_slots(of("all"))] == ["GPU-5f3a", "6"]


def test_cpu_hides_the_gpus_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "raise SystemExit('asked in vain')")
    (slot,) = find_slots(of("cpu"))
    assert (slot.device.kind, slot.visible_devices) == ("cpu", "")


def test_a_torch_without_gpus_runs_jobs_on_the_cpu_and_warns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpus(monkeypatch, [])
    with structlog.testing.capture_logs() as logs:
        (slot,) = find_slots(of("all"))
    assert slot.device.kind == "cpu"
    assert [entry["event"] for entry in logs] == ["no_gpu_for_torch"]


@pytest.mark.parametrize(
    ("program", "selection", "complaint"),
    [
        ("print('[]')", "0", "there is no GPU 0: torch sees 0"),
        ("raise SystemExit('the driver is broken')", "all", "the driver is broken"),
        ("import sys; sys.exit(7)", "all", "exit code 7"),
        ("print('surprise')", "all", "unexpected answer"),
    ],
)
def test_gpus_that_cannot_be_used_end_the_worker_with_the_setting(
    monkeypatch: pytest.MonkeyPatch, program: str, selection: str, complaint: str
) -> None:
    answering(monkeypatch, program)
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        find_slots(of(selection))
    assert caught.value.field == "INTRASLICE_WORKER_DEVICES"


def test_the_probe_prints_the_gpus_of_torch_alone() -> None:
    done = subprocess.run(devices.PROBE, capture_output=True, text=True, check=True)
    for device in json.loads(done.stdout):
        assert Device.model_validate(device).memory_bytes > 0


class Cards:
    """The part of `torch.cuda` that describes devices, with two of them."""

    cards = (
        SimpleNamespace(name="T4", total_memory=15 * GIB, major=7),
        SimpleNamespace(name="H100", total_memory=80 * GIB, major=9),
    )

    def device_count(self) -> int:
        return len(self.cards)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return self.cards[index]

    def get_device_name(self, index: int) -> str:
        return str(self.cards[index].name)


def test_the_probe_describes_each_gpu() -> None:
    old, new = (Device.model_validate(gpu) for gpu in describe_gpus(Cards(), amd=False))
    assert (old.name, old.memory_bytes) == ("T4", 15 * GIB)
    assert old.dtypes == ("float32", "float16")
    assert new.dtypes == ("float32", "bfloat16", "float16")


def test_amd_gpus_compute_in_bfloat16_whatever_their_number() -> None:
    dtypes = {tuple(gpu["dtypes"]) for gpu in describe_gpus(Cards(), amd=True)}
    assert dtypes == {("float32", "bfloat16", "float16")}


def test_processes_see_the_given_gpus_and_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setenv("INTRASLICE_API_KEY", "secret")
    assert child_process.environment("1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert child_process.environment("")["CUDA_VISIBLE_DEVICES"] == ""
    inherited = child_process.environment(None)
    assert inherited["CUDA_VISIBLE_DEVICES"] == "4"
    assert not any(name.startswith("INTRASLICE_") for name in inherited)


GPU_SLOT = Slot(number=0, device=gpu(24), visible_devices="3")
CPU_SLOT = Slot(number=0, device=CPU)
ON_GPU = Placement(device="cuda", visible_devices="3")
ON_HOST = Placement(device="cpu", visible_devices="")


@pytest.mark.parametrize(
    ("slots", "device", "gib", "expected"),
    [
        ((GPU_SLOT,), "gpu", 10, ON_GPU),
        ((GPU_SLOT,), "cuda:1", None, ON_GPU),
        ((GPU_SLOT,), "auto", 10, ON_GPU),
        ((GPU_SLOT,), "auto", None, ON_GPU),
        ((GPU_SLOT,), "auto", 40, ON_HOST),
        ((GPU_SLOT,), "cpu", 10, ON_HOST),
        ((CPU_SLOT,), "auto", 40, Placement(device="auto", visible_devices=None)),
        ((CPU_SLOT,), "cpu", 40, Placement(device="cpu", visible_devices=None)),
        ((), "auto", 40, Placement(device="auto", visible_devices=None)),
    ],
)
def test_an_attempt_runs_on_the_device_of_its_slot(
    slots: tuple[Slot, ...], device: str, gib: int | None, expected: Placement
) -> None:
    compression = CompressionConfig(device=device)
    job = JobRecord.model_construct(compression=compression, gpu_bytes=gib and gib * GIB)
    assert place(job, slots) == expected


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_an_attempt_on_several_devices_sees_the_gpus_of_its_slots(device: str) -> None:
    compression = CompressionConfig(device=device, devices=2)
    job = JobRecord.model_construct(compression=compression, gpu_bytes=40 * GIB)
    other = Slot(number=1, device=gpu(24), visible_devices="7")
    assert place(job, (GPU_SLOT, other)) == Placement(device="cuda", visible_devices="3,7")
