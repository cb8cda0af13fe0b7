"""Resolution of the device and dtype settings."""

from __future__ import annotations

import pytest
import torch

from intraslice_core import device
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.errors import ConfigurationError


@pytest.fixture
def cpu_flags(monkeypatch, tmp_path):
    """Return a function that sets the flags that the CPU reports."""

    def set_flags(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t: x\n")
        monkeypatch.setattr(device, "_CPU_FACTS", tmp_path / "cpuinfo")
        device.cpu_computes_bfloat16.cache_clear()

    yield set_flags
    device.cpu_computes_bfloat16.cache_clear()


def test_auto_device_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_unknown_device_is_rejected(name):
    with pytest.raises(ConfigurationError, match="device"):
        resolve_device(name)


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
