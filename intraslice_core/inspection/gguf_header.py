"""GGUF headers, walked and distrusted before a library reads the file.

The library believes every count in the file; a few bytes can make it loop and collect until the
memory is gone. What this walk lets pass is bounded by the file's own size.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.inspection.safetensors_header import MAX_TENSORS

MAX_SETTINGS = 4_096
MAX_ARRAY_ITEMS = 4_000_000
"""In all arrays together; the largest vocabularies with merges hold about one million."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**48
_STRING, _ARRAY = 8, 9
_HEAD = b"output.weight"
_FLOAT_BYTES = {0: 4, 1: 2, 30: 2}
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What the header tells, after it was found to fit the file."""

    architecture: str | None
    parameters: int
    settings: Mapping[str, int]
    """The settings that are whole numbers."""
    tied: bool
    """The output head is the embedding."""
    item_bytes: int
    """Of a weight once it is unpacked: float types keep theirs, the others become bfloat16."""


def read_gguf_header(file: Path) -> GgufHeader:
    """Walk the header once.

    Raises:
        BrokenCheckpointError: naming the file, if a count, length or offset in it is not
            plausible or leads outside.
    """
    if file.stat().st_size == 0:
        raise BrokenCheckpointError(f"{file.name}: the file is empty", field="model")
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _Walk(file.name, content).header()


class _Walk:
    def __init__(self, name: str, content: mmap.mmap) -> None:
        self._name = name
        self._content = content
        self._at = 0
        self._items = 0

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC or self._number("<I", 4) not in _VERSIONS:
            raise self._broken("no GGUF file of version 2 or 3")
        tensors, settings = self._number("<Q", 8), self._number("<Q", 8)
        if tensors > MAX_TENSORS or settings > MAX_SETTINGS:
            raise self._broken(f"{tensors} tensors and {settings} settings are not plausible")
        architecture = None
        numbers: dict[str, int] = {}
        for _ in range(settings):
            key, value = self._string(), self._value(self._number("<I", 4))
            if isinstance(value, int):
                numbers[key.decode("utf-8", "replace")] = value
            elif key == b"general.architecture" and value is not None:
                architecture = value.decode("utf-8", "replace")[:64]
        found = [self._tensor() for _ in range(tensors)]
        elements: Counter[int] = Counter()
        for _, kind, size in found:
            elements[kind] += size
        commonest = elements.most_common(1)
        return GgufHeader(
            architecture=architecture,
            parameters=elements.total(),
            settings=numbers,
            tied=all(name != _HEAD for name, _, _ in found),
            item_bytes=_FLOAT_BYTES.get(commonest[0][0], 2) if commonest else 2,
        )

    def _tensor(self) -> tuple[bytes, int, int]:
        """Name, type and elements of the next tensor."""
        name = self._string()
        dimensions = self._number("<I", 4)
        if dimensions > _MAX_DIMENSIONS:
            raise self._broken(f"a tensor of {dimensions} dimensions")
        elements = math.prod(self._number("<Q", 8) for _ in range(dimensions))
        kind = self._number("<I", 4)
        if elements > _MAX_ELEMENTS or self._number("<Q", 8) > len(self._content):
            raise self._broken("a tensor lies outside the file")
        return name, kind, elements

    def _value(self, kind: int) -> bytes | int | None:
        """Step over a value; the text of a string, the number of an integer."""
        if kind == _STRING:
            return self._string()
        if kind in _INTEGERS:
            return self._number(_INTEGERS[kind], _SCALAR_BYTES[kind])
        if kind == _ARRAY:
            self._array()
        else:
            self._take(self._scalar_bytes(kind))
        return None

    def _array(self) -> None:
        kind, items = self._number("<I", 4), self._number("<Q", 8)
        self._items += items
        if self._items > MAX_ARRAY_ITEMS:
            raise self._broken(f"arrays of {self._items} items are not plausible")
        if kind == _STRING:
            for _ in range(items):
                self._string()
        else:
            self._take(items * self._scalar_bytes(kind))

    def _scalar_bytes(self, kind: int) -> int:
        size = _SCALAR_BYTES.get(kind)
        if size is None:
            raise self._broken(f"a value of unknown type {kind}")
        return size

    def _string(self) -> bytes:
        return self._take(self._number("<Q", 8))

    def _number(self, form: str, size: int) -> int:
        number: int = struct.unpack(form, self._take(size))[0]
        return number

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            raise self._broken("the header leads outside the file")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _broken(self, what: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(f"{self._name}: {what}", field="model")
