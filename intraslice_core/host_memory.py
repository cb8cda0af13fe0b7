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


def return_free_memory() -> None:
    """Give the allocator's free pages back to the system, where it is glibc's.

    Tensors of many sizes leave holes; over the layers of a model these added up to several times
    what was in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
