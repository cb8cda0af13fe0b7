"""Compute device and dtype, memory for hidden states, and settings of the allocators.

Sections: dtypes by name, resolution of the device and dtype settings, precision of products,
storage of hidden states on the device, in memory or in mapped files, and bounds on the memory that
allocators and oneDNN keep.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from intraslice_core.accelerators import (
    DEVICE_HINT,
    FactorisationPath,
    GpuClass,
    gpu_class,
    unsupported_device,
)
from intraslice_core.errors import ConfigurationError, InsufficientDiskError, NumericalError
from intraslice_core.launcher import without_launcher

# -- dtypes by name ------------------------------------------------------------------------------

COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Compute dtypes by their names in settings."""
STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Data types by their names in safetensors headers."""
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names of the data types that weights may have."""
DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
"""Names in safetensors headers by data type."""

# -- device and dtype settings -------------------------------------------------------------------

_NON_FINITE = re.compile("NaN|infinit|finite")
_FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(name: str) -> torch.device:
    """Return the device of a setting; `auto` is CUDA if available, else the CPU.

    AMD GPUs are CUDA devices in torch. Apple and Intel GPUs are rejected by name: no line of the
    engine has run on one, and Apple's have no float64 (docs/method.md, section 2).

    Raises:
        ConfigurationError: if the engine does not support the device, torch does not know it, or
            the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = unsupported_device(name)
    if reason is not None:
        raise ConfigurationError(reason, field="device", hint=DEVICE_HINT)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"torch does not support device {name!r}", field="device", hint=DEVICE_HINT
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(
            f"device {name!r} is not supported: the engine was never run on one",
            field="device",
            hint=DEVICE_HINT,
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device {name!r} does not exist: "
            f"this machine has {torch.cuda.device_count()} CUDA devices",
            field="device",
            hint="use auto or cpu",
        )
    return device


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the compute dtype of a setting on `device` for weights stored as `stored`.

    `auto` keeps the stored dtype on accelerators that compute it, except that float64 becomes
    float32. Weights of bfloat16 are computed in float32 where bfloat16 would be emulated: on GPUs
    older than Ampere, and on most CPUs, where it was measured five times slower than float32.
    Other weights are computed in float32 on a CPU.

    Raises:
        ConfigurationError: if `name` is not a compute dtype, or a GPU does not compute it.
    """
    if name == "auto":
        return _automatic_dtype(device, stored)
    if name not in COMPUTE_DTYPES:
        raise ConfigurationError(
            f"unknown compute dtype {name!r}",
            field="dtype",
            hint=f"use auto, {', '.join(COMPUTE_DTYPES)}",
        )
    dtype = COMPUTE_DTYPES[name]
    # A CPU emulates it correctly, if slowly; kernels of old GPUs lack it one by one.
    if dtype == torch.bfloat16 and device.type != "cpu" and not computes_bfloat16(device):
        raise ConfigurationError(
            f"{device_class(device)} does not compute in bfloat16",
            field="dtype",
            hint="use auto or float32, or float16 if no activation exceeds 65504",
        )
    return dtype


def _automatic_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    if stored == torch.bfloat16:
        return stored if computes_bfloat16(device) else torch.float32
    if device.type == "cpu" or stored not in COMPUTE_DTYPES.values():
        return torch.float32
    return stored


def computes_bfloat16(device: torch.device) -> bool:
    """Report whether the device has instructions for products of bfloat16."""
    gpu = gpu_class_of(device)
    return cpu_computes_bfloat16() if gpu is None else gpu.has_bfloat16


def gpu_class_of(device: torch.device) -> GpuClass | None:
    """Return the class of a GPU by its compute capability; None for a CPU."""
    if device.type == "cpu":
        return None
    architecture = None
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
    return gpu_class(torch.cuda.get_device_capability(device), architecture)


def factorisation_path(device: torch.device) -> FactorisationPath:
    """Return the precision of factorisations of wide matrices on a device."""
    gpu = gpu_class_of(device)
    return "float64" if gpu is None else gpu.path


@contextmanager
def advising_bfloat16(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Add a hint to a `NumericalError` about non-finite values that arises in float16.

    The largest float16 is 65504; activations of many models exceed it. bfloat16 and float32 have
    the same range; the hint names bfloat16 where the device computes it.
    """
    try:
        yield
    except NumericalError as error:
        if dtype == torch.float16 and error.hint is None and _NON_FINITE.search(error.message):
            wider = "bfloat16" if device.type == "cpu" or computes_bfloat16(device) else "float32"
            error.hint = f"float16 overflows above 65504: compute in {wider} (dtype {wider})"
        raise


def device_class(device: torch.device) -> str:
    """Return the class of machines of about the same speed: GPU model or number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} x {torch.get_num_threads()}"


def machine_class(device: torch.device) -> str:
    """Return the class of machines on which an interrupted run resumes, with any number of threads.

    Several ranks on one machine have fewer threads each than a single process.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{kind}, host {torch.backends.cpu.get_cpu_capability()}"


def rounding_class(device: torch.device) -> str:
    """Return the class of machines with equal rounding, which select the same kernels."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device_class(device)}, host {capability} x {torch.get_num_threads()}"


@cache
def cpu_computes_bfloat16() -> bool:
    """Return True if the CPU has bfloat16 products, False if its flags cannot be read."""
    try:
        facts = _CPU_FACTS.read_text()
    except OSError:
        return False
    lines = (line for line in facts.splitlines() if line.lower().startswith(("flags", "features")))
    words = set(next(lines, "").split())
    return not words.isdisjoint(_FAST_BFLOAT16_FLAGS)


# -- precision of products --------------------------------------------------------------------


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Allow float32 matrix products to use bfloat16 factors with float32 sums.

    For factors whose values are bfloat16. A GPU multiplies them as TF32, whose 11 significant bits
    hold them exactly.
    """
    with _matmul_precision("medium"):
        yield


@contextmanager
def exact_products(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Allow float32 products the fastest arithmetic in which values of `dtype` are exact.

    bfloat16 has 8 significant bits and float16 has 11, as many as TF32, which is used for both on a
    GPU. A CPU would round float16 to bfloat16, so that it multiplies them in float32. Products of
    float32 values stay in float32 everywhere: TF32 would drop 13 of their bits.
    """
    if dtype == torch.bfloat16:
        precision = "medium"
    else:
        precision = "high" if dtype == torch.float16 and device.type == "cuda" else "highest"
    with _matmul_precision(precision):
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in float32, without TF32 on a GPU and without bfloat16 on a CPU."""
    with _matmul_precision("highest"):
        yield


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def repeatable_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in full float32 and, on a GPU, by deterministic kernels where torch has them.

    Where it has none it warns and goes on: a run must not end after an hour for lack of a kernel.
    What this promises is in docs/method.md, section 2. A CPU needs no such kernels.
    """
    mode = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    with full_float32():
        try:
            if device.type == "cuda" and mode == 0:
                # Unlike `use_deterministic_algorithms`, it does not import torch's compiler.
                torch.set_deterministic_debug_mode("warn")
                # It only makes bugs visible, and costs a pass over every new tensor.
                settings.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            settings.fill_uninitialized_memory = fills


# -- storage of hidden states ---------------------------------------------------------------------


class TensorMemory(Protocol):
    """Allocator of large tensors, such as the hidden states of many sequences."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous, uninitialised tensor."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in newly allocated storage."""


class DeviceMemory:
    """Allocator of tensors on the compute device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous, uninitialised tensor on the device."""
        return torch.empty(*shape, dtype=dtype, device=self._device)

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor on the device."""
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)


class HostMemory:
    """Allocator of large CPU tensors, in memory or in mapped files.

    The kernel can write out and drop the pages of a mapped file, so tensors in files may be larger
    than memory. The files are deleted as soon as they are mapped, so none is left when the process
    ends, even by a kill.

    Args:
        directory: directory of the files; None allocates in memory.
        memory_bytes: bytes to allocate in memory before files are used.
        page_locked: allocate memory that a GPU reads and writes while it computes, as long as
            enough other memory is left. Files are never locked.
    """

    def __init__(
        self, directory: Path | None = None, *, memory_bytes: int = 0, page_locked: bool = False
    ) -> None:
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._page_locked = page_locked

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous, uninitialised tensor on the CPU.

        Raises:
            InsufficientDiskError: if the directory has no space for it.
        """
        elements = math.prod(shape)
        size = elements * dtype.itemsize
        if self._directory is None:
            locked = self._page_locked and _can_be_locked(size)
            return torch.empty(*shape, dtype=dtype, pin_memory=locked)
        if size <= self._memory_bytes:
            self._memory_bytes -= size
            return torch.empty(*shape, dtype=dtype)
        file = self._reserve_file(size)
        try:
            flat = torch.from_file(str(file), shared=True, size=elements, dtype=dtype)
        finally:
            file.unlink()
        return flat.view(*shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in newly allocated storage."""
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def _reserve_file(self, size: int) -> Path:
        """Create a file with allocated blocks.

        Writing to a mapping without blocks on a full disk would kill the process.
        """
        assert self._directory is not None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="states-", dir=self._directory)
        except OSError as error:
            raise InsufficientDiskError(
                f"{self._directory} cannot be written to: {error.strerror}",
                field="offload_dir",
                hint="give a writable directory on a disk with free space",
            ) from error
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            Path(name).unlink()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InsufficientDiskError(
                f"{self._directory} has no space for {size / 1e9:.2f} GB of hidden states",
                field="offload_dir",
                hint="give a directory on a larger disk, or use fewer tokens",
            ) from error
        finally:
            os.close(handle)
        return Path(name)


def _can_be_locked(size: int) -> bool:
    """Return whether a page-locked tensor leaves half of the available memory to everything else.

    torch rounds page-locked allocations up to a power of two.
    """
    rounded = 1 << max(size - 1, 0).bit_length()
    return rounded <= int(psutil.virtual_memory().available) // 2


# -- bounds on kept memory -----------------------------------------------------------------------

_MMAP_THRESHOLD = -3
"""glibc's `M_MMAP_THRESHOLD`: the size from which an allocation gets a separate mapping."""
_SEPARATE_MAPPING_BYTES = 2**22
_ENVIRONMENT = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Limits of the compiled kernels that oneDNN and torch cache, and huge pages for large tensors.

A kernel takes about 1 MiB for each shape of a bfloat16 product. Sliced layers differ in shape, and
one layer needs about 25 kernels at a time. Without huge pages, creating and removing mappings was
measured to take a quarter of the time.
"""

_variables_set: set[str] = set()
"""Variables of `_ENVIRONMENT` that this process has set."""


def unbound_environment() -> dict[str, str]:
    """Return the environment of a process that runs alone, without the limits set here."""
    own = without_launcher(os.environ)
    return {name: value for name, value in own.items() if name not in _variables_set}


def keeps_few_kernels() -> bool:
    """Return True if `bound_allocator` has set a limit in this process."""
    return bool(_variables_set)


def bound_allocator() -> None:
    """Return freed large tensors to the system, and limit the number of cached kernels.

    glibc raises its threshold dynamically up to 32 MiB and keeps freed memory below it: tensors of
    many sizes leave holes that add up to several times the memory in use. Variables that are
    already set in the environment are not changed. Call this before the first tensor is created,
    when torch reads the variables; later it has less effect.
    """
    for name, value in _ENVIRONMENT.items():
        if name not in os.environ:
            os.environ[name] = value
            _variables_set.add(name)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _SEPARATE_MAPPING_BYTES)


def release_memory() -> None:
    """Return unused memory of the device and of the host, before another process needs it."""
    gc.collect()
    torch.cuda.empty_cache()
    return_free_memory()


def return_free_memory() -> None:
    """Return free pages of the allocator to the system, if it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
