"""Safetensors headers, read and distrusted before a library maps the file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intraslice_core.errors import BrokenCheckpointError

MAX_HEADER_BYTES = 16 * 2**20
"""A shard of ten thousand tensors needs about one MiB; more is an attack or an accident."""

MAX_TENSORS = 100_000
"""In a whole model; the largest published ones have fewer."""

MAX_DIMENSIONS = 8

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, after checking that the file can hold them.

    Raises:
        BrokenCheckpointError: naming the file, if it is truncated, lies about its header, or has
            tensors that overlap, leave holes or end outside the file.
    """
    raw, data_bytes = _raw_header(file)
    if len(raw) > MAX_TENSORS:
        raise _broken(file, f"{len(raw)} tensors are not plausible")
    entries = {
        name: _entry(file, name, value) for name, value in raw.items() if name != "__metadata__"
    }
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise _broken(file, f"tensor {name} overlaps another or leaves a hole")
        position = entry.end
    if position != data_bytes:
        raise _broken(file, f"the header promises {position} bytes of data, there are {data_bytes}")
    return entries


def _raw_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object and the number of data bytes behind it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise _broken(file, "the file is truncated, or no safetensors file")
        if length > MAX_HEADER_BYTES:
            raise _broken(file, f"a header of {length} bytes is not plausible")
        text = stream.read(length)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(file, "the header is not JSON") from error
    if not isinstance(raw, dict):
        raise _broken(file, "the header is not a JSON object")
    return raw, size - 8 - length


def _entry(file: Path, name: str, value: Any) -> TensorEntry:
    """One tensor's entry, checked against its own shape."""
    try:
        shape = tuple(value["shape"])
        begin, end = value["data_offsets"]
        item_bytes = ITEM_BYTES[value["dtype"]]
        numbers = (*shape, begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, f"the entry of tensor {name} cannot be understood") from error
    if len(shape) > MAX_DIMENSIONS:
        raise _broken(file, f"tensor {name} has {len(shape)} dimensions")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _broken(file, f"tensor {name} has a size or offset that is no natural number")
    if end - begin != math.prod(shape) * item_bytes:
        raise _broken(file, f"tensor {name}: offsets and shape {list(shape)} disagree")
    return TensorEntry(dtype=value["dtype"], shape=shape, begin=begin, end=end)


def _broken(file: Path, what: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"{file.name}: {what}", field="model")
