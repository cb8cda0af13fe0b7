"""Headers of untrusted GGUF files: metadata and tensors, bounded by the size of the file.

Libraries trust every count in a file, so a few bytes can make them loop or allocate until the
memory is exhausted. The parser bounds all counts, lengths and offsets. Arrays are located here and
read on demand. The module imports no torch.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intraslice_core.checkpoints.weight_files import require_no_lfs_pointer
from intraslice_core.errors import BrokenCheckpointError

MAX_TENSORS = 100_000
"""Largest number of tensors in a model; the largest published models have fewer."""

MAX_SETTINGS = 4_096
MAX_ARRAY_ITEMS = 4_000_000
"""Largest number of items in all arrays of a file; vocabularies with merges have a million."""

DEFAULT_ALIGNMENT = 32

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**48
_MAX_ALIGNMENT = 2**20
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_FLOAT_BYTES = {0: 4, 1: 2, 30: 2}
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Codes of Python's struct module by the type of a scalar."""

BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}
"""Elements and bytes of a block by tensor type (`gguf.constants.GGML_QUANT_SIZES`)."""


@dataclass(frozen=True, kw_only=True)
class GgufArray:
    """Location of an array in a file; `offset` is that of the first item."""

    file: Path
    kind: int
    items: int
    offset: int


Value = bool | int | float | str | GgufArray


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Type, shape (in torch's order) and location of a tensor's data."""

    file: Path
    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return the size of the stored data."""
        elements, size = BLOCKS[self.kind]
        return self.elements // elements * size


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Metadata and tensors of a model in one or several GGUF files."""

    files: tuple[Path, ...]
    values: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @property
    def name(self) -> str:
        """Return the name of the first file."""
        return self.files[0].name

    @property
    def architecture(self) -> str | None:
        """Return llama.cpp's name of the architecture, or None if there is none."""
        value = self.values.get("general.architecture")
        return value[:64] if isinstance(value, str) else None

    @property
    def parameters(self) -> int:
        """Return the number of elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def item_bytes(self) -> int:
        """Return the bytes of an unpacked weight.

        Float types keep their size; quantised types become bfloat16.
        """
        elements: Counter[int] = Counter()
        for tensor in self.tensors.values():
            elements[tensor.kind] += tensor.elements
        most_common = elements.most_common(1)
        return _FLOAT_BYTES.get(most_common[0][0], 2) if most_common else 2


def read_header(file: Path) -> GgufHeader:
    """Return the header of one GGUF file after checking that it fits the file.

    Raises:
        BrokenCheckpointError: naming the file, if a count or length is not plausible or if the
            data of a tensor ends outside the file.
    """
    if file.stat().st_size == 0:
        raise BrokenCheckpointError(f"{file.name}: the file is empty", field="model")
    require_no_lfs_pointer(file)
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _GgufParser(file, content).header()


def read_array(array: GgufArray) -> list[int] | list[float] | list[bool] | list[str]:
    """Return the items of an array.

    Raises:
        BrokenCheckpointError: naming the file, if a string is not UTF-8.
    """
    with (
        array.file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _GgufParser(array.file, content).items(array)


class _GgufParser:
    """Sequential parser of a mapped GGUF file's header."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file = file
        self._content = content
        self._position = 0
        self._array_items = 0

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC or self._number("I", 4) not in _VERSIONS:
            raise self._broken("the file is not GGUF version 2 or 3 (little-endian)")
        count, settings = self._number("Q", 8), self._number("Q", 8)
        if count > MAX_TENSORS or settings > MAX_SETTINGS:
            raise self._broken(f"{count} tensors and {settings} settings are not plausible")
        values: dict[str, Value] = {}
        for _ in range(settings):
            key = self._text(self._string())
            values[key] = self._value(self._number("I", 4))
        entries = dict(self._tensor() for _ in range(count))
        if len(entries) != count:
            raise self._broken("two tensors have the same name")
        return GgufHeader(
            files=(self._file,), values=values, tensors=self._located(values, entries)
        )

    def items(self, array: GgufArray) -> list[int] | list[float] | list[bool] | list[str]:
        self._position = array.offset
        if array.kind == _STRING:
            return [self._text(self._string()) for _ in range(array.items)]
        form = _FORMS[array.kind]
        raw = self._take(array.items * struct.calcsize(form))
        return list(struct.unpack(f"<{array.items}{form}", raw))

    def _located(
        self, values: Mapping[str, Value], entries: Mapping[str, GgufTensor]
    ) -> dict[str, GgufTensor]:
        """Return the tensors with offsets from the start of the file."""
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT:
            raise self._broken(f"general.alignment {alignment!r} is not plausible")
        start = self._position + -self._position % alignment
        located = {}
        for name, entry in entries.items():
            tensor = GgufTensor(
                file=entry.file, kind=entry.kind, shape=entry.shape, offset=start + entry.offset
            )
            if tensor.offset + tensor.bytes > len(self._content):
                raise self._broken(
                    f"tensor {name} lies outside the file; the file is truncated or invalid"
                )
            located[name] = tensor
        return located

    def _tensor(self) -> tuple[str, GgufTensor]:
        """Return name and entry of the next tensor; the offset counts from the first tensor."""
        name = self._text(self._string())
        dimensions = self._number("I", 4)
        if dimensions > _MAX_DIMENSIONS:
            raise self._broken(f"a tensor has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q", 8) for _ in range(dimensions)]))
        kind, offset = self._number("I", 4), self._number("Q", 8)
        if math.prod(shape) > _MAX_ELEMENTS or offset > len(self._content):
            raise self._broken(f"tensor {name[:64]} lies outside the file")
        if kind not in BLOCKS:
            raise self._broken(f"tensor {name[:64]} has the unknown type {kind}")
        if shape and shape[-1] % BLOCKS[kind][0]:
            raise self._broken(
                f"tensor {name[:64]}: rows of {shape[-1]} are not a multiple of "
                f"{BLOCKS[kind][0]}, the block of its type"
            )
        return name, GgufTensor(file=self._file, kind=kind, shape=shape, offset=offset)

    def _value(self, kind: int) -> Value:
        """Consume a value and return it; arrays are located only."""
        if kind == _STRING:
            return self._text(self._string())
        if kind == _ARRAY:
            return self._array()
        number: bool | int | float = self._number(self._form(kind), struct.calcsize(_FORMS[kind]))
        return _shortest(number) if kind == _FLOAT32 and type(number) is float else number

    def _array(self) -> GgufArray:
        kind, items = self._number("I", 4), self._number("Q", 8)
        self._array_items += items
        if self._array_items > MAX_ARRAY_ITEMS:
            raise self._broken(f"arrays of {self._array_items} items are not plausible")
        array = GgufArray(file=self._file, kind=kind, items=items, offset=self._position)
        if kind == _STRING:
            for _ in range(items):
                self._skip(self._number("Q", 8))
        else:
            self._skip(items * struct.calcsize(self._form(kind)))
        return array

    def _form(self, kind: int) -> str:
        form = _FORMS.get(kind)
        if form is None:
            raise self._broken(f"a value has the unknown type {kind}")
        return form

    def _string(self) -> bytes:
        return self._take(self._number("Q", 8))

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._broken(f"the string {raw[:64]!r} is not UTF-8") from error

    def _number(self, form: str, size: int) -> int:
        number: int = struct.unpack("<" + form, self._take(size))[0]
        return number

    def _take(self, size: int) -> bytes:
        begin = self._position
        self._skip(size)
        return self._content[begin : self._position]

    def _skip(self, size: int) -> None:
        if self._position + size > len(self._content):
            raise self._broken("the header extends beyond the end of the file")
        self._position += size

    def _broken(self, what: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(f"{self._file.name}: {what}", field="model")


def _shortest(value: float) -> float:
    """Return the number of fewest digits that float32 rounds to the value, as 1e-06."""
    for digits in range(6, 10):
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("<f", candidate) == struct.pack("<f", value):
            return candidate
    return value
