"""A safetensors file under our own mapping.

safetensors maps privately and writably, which the kernel accounts like memory that the whole file
might be copied into: a file larger than what a process may have cannot even be opened. Mapped
read-only and shared, its pages are the page cache's, dropped whenever somebody needs the room.
"""

from __future__ import annotations

import math
import mmap
import warnings
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.inspection.safetensors_header import TensorEntry

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class MappedFile:
    """Tensors of one file whose header was checked. They must not be written to.

    Raises:
        OSError: if the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            self._begin = 8 + int.from_bytes(stream.read(8), "little")
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, entry: TensorEntry) -> Tensor:
        """One tensor; it outlives this object.

        Raises:
            OSError: if the file has become too short.
        """
        begin, end = self._begin + entry.begin, self._begin + entry.end
        if end > len(self._bytes):
            raise OSError("the file has changed")
        dtype = _DTYPES[entry.dtype]
        if begin == end:
            return torch.empty(entry.shape, dtype=dtype)
        with warnings.catch_warnings():  # torch warns of every buffer that is read-only
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(
                self._bytes, dtype=dtype, count=math.prod(entry.shape), offset=begin
            )
        return flat.view(entry.shape)
