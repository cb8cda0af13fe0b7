"""Inspection of untrusted model files from their headers, before a library opens them.

Sections: safetensors headers, tensors of a checkpoint directory, model facts and limits, and
models inside installed packages. GGUF headers are in `gguf/header.py`.

Libraries trust every count in a file, so a few bytes can make them loop or allocate until the
memory is exhausted. The checks here bound all counts, lengths and offsets by the size of the file.
The module imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intraslice_core.checkpoints.gguf.description import model_type_of
from intraslice_core.checkpoints.gguf.header import MAX_TENSORS
from intraslice_core.checkpoints.gguf.parts import read_gguf_header
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
            model_type=model_type_of(header),
            parameters=header.parameters,
            bytes=sum(file.stat().st_size for file in header.files),
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
