"""Inspection of untrusted model files from their headers, before a library opens them.

Sections: safetensors headers, GGUF headers, tensors of a checkpoint directory, model facts and
limits, and models inside installed packages.

Libraries trust every count in a file, so a few bytes can make them loop or allocate until the
memory is exhausted. The checks here bound all counts, lengths and offsets by the size of the file.
The module imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import mmap
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intraslice_core.checkpoints.quantization import (
    Quantization,
    quantization_of,
    unpacked_sizes,
)
from intraslice_core.checkpoints.weight_files import (
    CONFIG_FILE,
    read_json_object,
    require_no_lfs_pointer,
    require_readable_settings,
    weight_files,
)
from intraslice_core.config import ModelLimits
from intraslice_core.errors import BrokenCheckpointError, ModelNotFoundError, ModelTooLargeError

MAX_TENSORS = 100_000
"""Largest number of tensors in a model; the largest published models have fewer."""

# -- safetensors headers -----------------------------------------------------------------------

MAX_HEADER_BYTES = 16 * 2**20
"""Largest header of one file; a shard of ten thousand tensors needs about 1 MiB."""

MAX_DIMENSIONS = 8

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Data type, shape and byte range of a tensor; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file after checking that the file can hold them.

    Raises:
        BrokenCheckpointError: naming the file, if it is truncated, if its header is invalid, or if
            tensors overlap, leave holes or end outside the file.
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
            raise _broken(file, f"tensor {name} overlaps another tensor or leaves a hole")
        position = entry.end
    if position != data_bytes:
        raise _broken(
            file, f"the header describes {position} bytes of data, the file has {data_bytes}"
        )
    return entries


def _raw_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header's JSON object and the number of data bytes after it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            require_no_lfs_pointer(file)
            raise _broken(file, "the file is truncated or not a safetensors file")
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
    """Return one tensor's entry after checking its byte range against its shape."""
    try:
        shape = tuple(value["shape"])
        begin, end = value["data_offsets"]
        item_bytes = ITEM_BYTES[value["dtype"]]
        numbers = (*shape, begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, f"the entry of tensor {name} is malformed") from error
    if len(shape) > MAX_DIMENSIONS:
        raise _broken(
            file, f"tensor {name} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are allowed"
        )
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _broken(file, f"tensor {name} has a size or offset that is not a natural number")
    if end - begin != math.prod(shape) * item_bytes:
        raise _broken(
            file, f"tensor {name}: offsets {begin} to {end} contradict shape {list(shape)}"
        )
    return TensorEntry(dtype=value["dtype"], shape=shape, begin=begin, end=end)


def _broken(file: Path, what: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"{file.name}: {what}", field="model")


# -- GGUF headers ------------------------------------------------------------------------------

MAX_SETTINGS = 4_096
MAX_ARRAY_ITEMS = 4_000_000
"""Largest number of items in all arrays of a file; vocabularies with merges have a million."""

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
    """Contents of a GGUF header whose counts and offsets fit the file."""

    architecture: str | None
    parameters: int
    settings: Mapping[str, int]
    """Integer settings by name."""
    tied: bool
    """True if the output head shares the embedding matrix."""
    item_bytes: int
    """Bytes of an unpacked weight: float types keep their size, quantised ones become bfloat16."""


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file after checking that it fits the file.

    Raises:
        BrokenCheckpointError: naming the file, if a count or length is not plausible or an offset
            lies outside the file.
    """
    if file.stat().st_size == 0:
        raise BrokenCheckpointError(f"{file.name}: the file is empty", field="model")
    require_no_lfs_pointer(file)
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _GgufParser(file.name, content).header()


class _GgufParser:
    """Sequential parser of a mapped GGUF file's header."""

    def __init__(self, name: str, content: mmap.mmap) -> None:
        self._name = name
        self._content = content
        self._position = 0
        self._array_items = 0

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC or self._number("<I", 4) not in _VERSIONS:
            raise self._broken("the file is not GGUF version 2 or 3")
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
        entries = [self._tensor() for _ in range(tensors)]
        elements: Counter[int] = Counter()
        for _, kind, size in entries:
            elements[kind] += size
        most_common = elements.most_common(1)
        return GgufHeader(
            architecture=architecture,
            parameters=elements.total(),
            settings=numbers,
            tied=all(name != _HEAD for name, _, _ in entries),
            item_bytes=_FLOAT_BYTES.get(most_common[0][0], 2) if most_common else 2,
        )

    def _tensor(self) -> tuple[bytes, int, int]:
        """Return name, type and number of elements of the next tensor."""
        name = self._string()
        dimensions = self._number("<I", 4)
        if dimensions > _MAX_DIMENSIONS:
            raise self._broken(f"a tensor has {dimensions} dimensions")
        elements = math.prod(self._number("<Q", 8) for _ in range(dimensions))
        kind = self._number("<I", 4)
        if elements > _MAX_ELEMENTS or self._number("<Q", 8) > len(self._content):
            raise self._broken(
                f"tensor {name[:64].decode('utf-8', 'replace')} lies outside the file"
            )
        return name, kind, elements

    def _value(self, kind: int) -> bytes | int | None:
        """Consume a value; return a string's bytes, an integer's value, or None for other types."""
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
        self._array_items += items
        if self._array_items > MAX_ARRAY_ITEMS:
            raise self._broken(f"arrays of {self._array_items} items are not plausible")
        if kind == _STRING:
            for _ in range(items):
                self._string()
        else:
            self._take(items * self._scalar_bytes(kind))

    def _scalar_bytes(self, kind: int) -> int:
        size = _SCALAR_BYTES.get(kind)
        if size is None:
            raise self._broken(f"a value has the unknown type {kind}")
        return size

    def _string(self) -> bytes:
        return self._take(self._number("<Q", 8))

    def _number(self, form: str, size: int) -> int:
        number: int = struct.unpack(form, self._take(size))[0]
        return number

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._content):
            raise self._broken("the header extends beyond the end of the file")
        content = self._content[self._position : end]
        self._position = end
        return content

    def _broken(self, what: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(f"{self._name}: {what}", field="model")


# -- tensors of a checkpoint directory ----------------------------------------------------------

DEFAULT_SHARD_BYTES = 5_000_000_000
"""Default size limit of a shard; the writer starts a new file before it is exceeded."""

RESERVED_HEADER_BYTES = 64 * 1024
"""Space reserved before the data, because the header is known last; the rest is blanks."""

TIGHT_BELOW_BYTES = 64 * 2**20
"""Size below which a file is rewritten with a header of exactly the needed length."""


def locate_tensors(directory: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Return the file name and the header entry of every tensor.

    Raises:
        BrokenCheckpointError: naming the file at fault.
        UnsupportedFormatError: if it holds an adapter.
    """
    file_of: dict[str, str] = {}
    entries: dict[str, TensorEntry] = {}
    for shard in weight_files(directory).names:
        header = read_header(directory / shard)
        duplicates = entries.keys() & header.keys()
        if duplicates:
            raise BrokenCheckpointError(f"{shard}: tensor {min(duplicates)} is stored twice")
        file_of |= dict.fromkeys(header, shard)
        entries |= header
        if len(entries) > MAX_TENSORS:
            raise BrokenCheckpointError(
                f"{shard}: the checkpoint has more than {MAX_TENSORS} tensors", field="model"
            )
    return file_of, entries


# -- model facts and limits --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Type and size of a model, read from headers; `bytes` counts the weight files."""

    model_type: str | None
    parameters: int
    """Number of stored weights; packed ones are counted as unpacked."""
    bytes: int
    quantization: Quantization | None = None
    """Quantisation of a directory that is dequantised before it is compressed."""


def inspect_model(place: Path) -> ModelFacts:
    """Return type and size of a model in a directory of safetensors or a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a header is invalid, or if this process may not read a file.
        UnsupportedFormatError: if the directory holds an adapter, or weights quantised by an
            unsupported scheme.
    """
    try:
        return _inspect_files(place)
    except PermissionError as error:
        raise BrokenCheckpointError(
            f"{Path(error.filename).name} cannot be read: {error.strerror}",
            field="model",
            hint=f"make the model's files readable for user id {os.geteuid()}",
        ) from error


def _inspect_files(place: Path) -> ModelFacts:
    if not place.is_dir():
        header = read_gguf_header(place)
        return ModelFacts(
            model_type=header.architecture,
            parameters=header.parameters,
            bytes=place.stat().st_size,
        )
    require_readable_settings(place)
    file_of, entries = locate_tensors(place)
    settings = read_json_object(place / CONFIG_FILE)
    model_type = settings.get("model_type")
    quantization = quantization_of(settings)
    shapes = {name: entry.shape for name, entry in entries.items()}
    sizes = (
        map(math.prod, shapes.values())
        if quantization is None
        else (size for _, size in unpacked_sizes(quantization, shapes))
    )
    return ModelFacts(
        model_type=model_type if isinstance(model_type, str) else None,
        parameters=sum(sizes),
        bytes=sum((place / file).stat().st_size for file in set(file_of.values())),
        quantization=quantization,
    )


def require_within(facts: ModelFacts, limits: ModelLimits) -> None:
    """Raise if a model is larger than allowed.

    Raises:
        ModelTooLargeError: naming the size and the limit.
    """
    for unit, size, allowed in (
        ("parameters", facts.parameters, limits.max_parameters),
        ("bytes of weights", facts.bytes, limits.max_bytes),
    ):
        if allowed is not None and size > allowed:
            raise ModelTooLargeError(
                f"the model has {size} {unit}, {allowed} are allowed", field="model"
            )


# -- models inside installed packages ----------------------------------------------------------


def find_in_package(name: str) -> Path:
    """Return the model inside an installed package: a .gguf file or a directory of safetensors.

    Raises:
        ModelNotFoundError: if the package is not installed or does not contain exactly one model.
    """
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(
            f"package {name} is not installed", field="model", hint=f"pip install {name}"
        )
    roots = [Path(place) for place in spec.submodule_search_locations]
    models = [file for root in roots for file in root.rglob("*.gguf")]
    models += sorted({file.parent for root in roots for file in root.rglob("*.safetensors")})
    if len(models) != 1:
        raise ModelNotFoundError(
            f"package {name} contains {len(models)} models, expected one",
            field="model",
            hint="give the path of one: " + ", ".join(map(str, models)) if models else None,
        )
    return models[0]
