"""Where hidden states of many sequences are kept: in memory, or in files that are mapped into it.

A mapped file's pages are the kernel's to write out and drop, so what is kept there may be larger
than memory. Files have no name from the moment they are mapped: nothing is left of them when the
process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.errors import ConfigurationError, InsufficientDiskError

COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
"""Data types by their names in safetensors headers."""
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names of the data types that weights may have."""
DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(name: str) -> torch.device:
    """The device a setting means; `auto` is CUDA where there is one.

    Raises:
        ConfigurationError: if torch does not know the name or the machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"torch knows no device {name!r}", field="device", hint="use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, {name!r} is not one",
            field="device",
            hint="use auto or cpu",
        )
    return device


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The compute dtype a setting means on `device` for weights stored as `stored`.

    `auto` keeps the stored dtype on accelerators. On a CPU it is float32, unless the CPU computes
    in bfloat16: emulated, bfloat16 was measured five times slower than float32.

    Raises:
        ConfigurationError: if `name` is no compute dtype.
    """
    if name != "auto":
        try:
            return COMPUTE_DTYPES[name]
        except KeyError:
            raise ConfigurationError(
                f"unknown compute dtype {name!r}",
                field="dtype",
                hint=f"use auto, {', '.join(COMPUTE_DTYPES)}",
            ) from None
    if device.type != "cpu":
        return stored
    if stored == torch.bfloat16 and cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def device_class(device: torch.device) -> str:
    """Which machines are about as fast as this one: the GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} x {torch.get_num_threads()}"


def rounding_class(device: torch.device) -> str:
    """Which machines round alike: those that choose the same kernels."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device_class(device)}, host {capability} x {torch.get_num_threads()}"


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products; where that cannot be read, no."""
    try:
        facts = _CPU_FACTS.read_text()
    except OSError:
        return False
    lines = (line for line in facts.splitlines() if line.lower().startswith(("flags", "features")))
    words = set(next(lines, "").split())
    return not words.isdisjoint(_FAST_BFLOAT16_FLAGS)


class HostMemory:
    """Gives room for tensors.

    Args:
        directory: where the files are made; None keeps everything in memory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU, of any content.

        Raises:
            InsufficientDiskError: if the directory cannot hold it.
        """
        elements = math.prod(shape)
        if self._directory is None or elements == 0:
            return torch.empty(*shape, dtype=dtype)
        file = self._reserved(elements * dtype.itemsize)
        try:
            flat = torch.from_file(str(file), shared=True, size=elements, dtype=dtype)
        finally:
            file.unlink()
        return flat.view(*shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values in room of their own."""
        room = self.empty(tensor.shape, tensor.dtype)
        return room.copy_(tensor)

    def _reserved(self, size: int) -> Path:
        """A file whose blocks exist: writing to a mapping that finds none kills the process."""
        assert self._directory is not None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="states-", dir=self._directory)
        except OSError as error:
            raise InsufficientDiskError(
                f"{self._directory} cannot be written to: {error.strerror}",
                field="offload_dir",
                hint="name a directory on a disk with room",
            ) from error
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            Path(name).unlink()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InsufficientDiskError(
                f"{self._directory} has no room for {size / 1e9:.2f} GB of hidden states",
                field="offload_dir",
                hint="name a directory on a disk with room, or calibrate on fewer tokens",
            ) from error
        finally:
            os.close(handle)
        return Path(name)


_MMAP_THRESHOLD = -3
"""glibc's name for the size from which an allocation gets a mapping of its own."""
_OWN_MAPPING_BYTES = 2**22
_ENVIRONMENT = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Kernels that oneDNN, and torch for it, keep compiled: about 1 MiB for each shape of a bfloat16
product, and every sliced layer has shapes of its own; a layer needs some 25 at a time. And large
tensors in huge pages: without, mappings that come and go were measured to cost a quarter of the
time."""


_ours: set[str] = set()
"""What of it was put there by us."""


def unbound_environment() -> dict[str, str]:
    """The environment for processes that are to keep as many kernels as they like."""
    return {name: value for name, value in os.environ.items() if name not in _ours}


def keeps_few_kernels() -> bool:
    """Whether `bound_allocator` was called in this process, and had a say."""
    return bool(_ours)


def bound_allocator() -> None:
    """Let large tensors go back to the system when they are freed, and keep few kernels.

    glibc raises its threshold as it sees fit, up to 32 MiB, and then keeps what is freed below:
    tensors of many sizes leave holes that add up to several times what is in use. What the
    environment says already is left as it is. To be called before the first tensor is made, when
    torch looks; later it does less.
    """
    for name, value in _ENVIRONMENT.items():
        if name not in os.environ:
            os.environ[name] = value
            _ours.add(name)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)


def return_free_memory() -> None:
    """Give the allocator's free pages back to the system, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
