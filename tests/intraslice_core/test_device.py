"""Resolution of the device and dtype settings."""

from __future__ import annotations

import pytest
import torch

from intraslice_core import device
from intraslice_core.config import CompressionConfig
from intraslice_core.device import (
    advising_bfloat16,
    exact_products,
    factorisation_path,
    full_float32,
    repeatable_arithmetic,
    resolve_device,
    resolve_dtype,
)
from intraslice_core.errors import ConfigurationError, NumericalError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cpu_flags(monkeypatch, tmp_path):
    """Return a function that sets the flags that the CPU reports."""

    def set_flags(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t: x\n")
        monkeypatch.setattr(device, "_CPU_FACTS", tmp_path / "cpuinfo")
        device.cpu_computes_bfloat16.cache_clear()

    yield set_flags
    device.cpu_computes_bfloat16.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that sets the compute capability that the GPU reports."""

    def set_capability(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    return set_capability


def test_auto_device_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_unknown_device_is_rejected(name):
    with pytest.raises(ConfigurationError, match="device"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["mps", "mps:0", "xpu", "xpu:1", "meta", "hip", "xla", "vulkan"])
def test_devices_never_tested_are_rejected_by_name(name):
    with pytest.raises(ConfigurationError, match=f"device: device '{name}' is not supported") as e:
        resolve_device(name)
    assert e.value.field == "device"
    assert e.value.hint == "use auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["mps", "xpu:1"])
def test_settings_with_devices_never_tested_are_invalid(name):
    with pytest.raises(ValueError, match=r"device '.*' is not supported.*use auto, cpu, cuda"):
        CompressionConfig(device=name)


def test_absent_gpu_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(ConfigurationError, match="1 CUDA devices"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("flags", ["avx512_bf16", "avx2 amx_bf16"])
def test_bfloat16_is_kept_on_a_cpu_that_computes_it(cpu_flags, flags):
    cpu_flags(flags)
    assert resolve_dtype("auto", torch.device("cpu"), torch.bfloat16) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu"), torch.float16) == torch.float32


def test_other_cpus_compute_in_float32(cpu_flags):
    cpu_flags("avx2 avx512f")
    assert resolve_dtype("auto", torch.device("cpu"), torch.bfloat16) == torch.float32


def test_auto_keeps_the_stored_dtype_on_a_gpu():
    assert resolve_dtype("auto", torch.device("cuda"), torch.float16) == torch.float16


def test_explicit_dtype_is_used():
    assert resolve_dtype("bfloat16", torch.device("cpu"), torch.float32) == torch.bfloat16
    with pytest.raises(ConfigurationError, match="int8"):
        resolve_dtype("int8", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_old_gpus_compute_bfloat16_weights_in_float32(gpu, capability):
    gpu(*capability)
    assert resolve_dtype("auto", CUDA, torch.bfloat16) == torch.float32
    with pytest.raises(ConfigurationError, match="Tesla T4 does not compute in bfloat16") as caught:
        resolve_dtype("bfloat16", CUDA, torch.float32)
    assert caught.value.field == "dtype"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 1)])
def test_newer_gpus_compute_bfloat16(gpu, capability):
    gpu(*capability)
    assert resolve_dtype("auto", CUDA, torch.bfloat16) == torch.bfloat16
    assert resolve_dtype("bfloat16", CUDA, torch.float32) == torch.bfloat16


def test_auto_never_computes_in_float64(gpu):
    gpu(9, 0)
    assert resolve_dtype("auto", CUDA, torch.float64) == torch.float32
    assert resolve_dtype("auto", CPU, torch.float64) == torch.float32


@pytest.mark.parametrize(("capability", "advised"), [((7, 5), "float32"), ((8, 6), "bfloat16")])
def test_an_overflow_advises_a_dtype_that_the_device_computes(gpu, capability, advised):
    gpu(*capability)
    with pytest.raises(NumericalError) as caught, advising_bfloat16(torch.float16, CUDA):
        raise NumericalError("an activation is NaN or infinite")
    assert caught.value.hint == (
        f"float16 overflows above 65504: compute in {advised} (dtype {advised})"
    )


@pytest.mark.parametrize(
    ("capability", "path"),
    [((7, 5), "mixed"), ((8, 0), "float64"), ((8, 9), "mixed"), ((9, 0), "float64")],
)
def test_gpus_with_slow_float64_factorise_in_float32(gpu, capability, path):
    gpu(*capability)
    assert factorisation_path(CUDA) == path


def test_cpus_factorise_in_float64():
    assert factorisation_path(CPU) == "float64"


@pytest.mark.parametrize(
    ("dtype", "device", "precision"),
    [
        (torch.bfloat16, CPU, "medium"),
        (torch.bfloat16, CUDA, "medium"),
        (torch.float16, CPU, "highest"),
        (torch.float16, CUDA, "high"),
        (torch.float32, CPU, "highest"),
        (torch.float32, CUDA, "highest"),
    ],
)
def test_products_use_the_fastest_arithmetic_that_is_exact(dtype, device, precision):
    before = torch.get_float32_matmul_precision()
    with exact_products(dtype, device):
        assert torch.get_float32_matmul_precision() == precision
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("device", "mode"), [(CUDA, 1), (CPU, 0)])
def test_arithmetic_is_repeatable_for_a_run_and_as_before_after_it(device, mode):
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_float32_matmul_precision("high")
    try:
        with repeatable_arithmetic(device):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_deterministic_debug_mode() == mode
            assert torch.utils.deterministic.fill_uninitialized_memory is (device == CPU and fills)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_deterministic_debug_mode() == 0
        with pytest.raises(NumericalError), repeatable_arithmetic(device):
            raise NumericalError("a run that fails")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.get_deterministic_debug_mode() == 0
    assert torch.utils.deterministic.fill_uninitialized_memory is fills


def test_a_caller_that_demands_deterministic_kernels_keeps_its_demand():
    torch.set_deterministic_debug_mode("error")
    try:
        with repeatable_arithmetic(CUDA):
            assert torch.get_deterministic_debug_mode() == 2
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.set_deterministic_debug_mode("default")
