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
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.errors import InsufficientDiskError


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
