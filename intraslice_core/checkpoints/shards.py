"""Safetensors written as tensors arrive: no shard is ever held in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.inspection.layout import RESERVED_HEADER_BYTES, TIGHT_BELOW_BYTES

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


class ShardFile:
    """One safetensors file, appended to until it is closed.

    Args:
        path: the file; it must not exist.
        metadata: kept in the header; the format's name is, in any case.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._metadata = {"format": "pt", **(metadata or {})}
        self.data_bytes = 0
        self._entries: dict[str, dict[str, object]] = {}
        self._stream = path.open("x+b")
        self._stream.seek(8 + RESERVED_HEADER_BYTES)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors written so far."""
        return tuple(self._entries)

    def has_room(self, name: str, size: int, max_bytes: int) -> bool:
        """Whether a tensor of `size` bytes still fits; an empty shard takes any tensor."""
        if not self._entries:
            return True
        header = len(self._header()) + len(name) + 256
        return header <= RESERVED_HEADER_BYTES and self.data_bytes + size <= max_bytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a contiguous CPU tensor."""
        size = tensor.numel() * tensor.element_size()
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.data_bytes, self.data_bytes + size],
        }
        self._stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        self.data_bytes += size

    def close(self) -> None:
        """Write the header and make the file durable."""
        header = self._header()
        length = RESERVED_HEADER_BYTES
        if self.data_bytes < TIGHT_BELOW_BYTES:
            length = len(header) + -len(header) % 8  # safetensors aligns its data to 8 bytes
            self._move_data(length)
        self._stream.seek(0)
        self._stream.write(length.to_bytes(8, "little") + header.ljust(length))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _move_data(self, header_bytes: int) -> None:
        """Let the data begin right behind a header of that size."""
        self._stream.seek(8 + RESERVED_HEADER_BYTES)
        data = self._stream.read()
        self._stream.seek(8 + header_bytes)
        self._stream.write(data)
        self._stream.truncate()

    def abandon(self) -> None:
        """Close without a header; the file is rubbish afterwards."""
        self._stream.close()

    def _header(self) -> bytes:
        entries = {"__metadata__": self._metadata} | self._entries
        return json.dumps(entries, separators=(",", ":")).encode()
