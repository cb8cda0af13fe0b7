"""Inspection of untrusted model files from their headers, before a library opens them.

Sections: safetensors headers, settings and shards of a checkpoint directory, model facts and
limits, and models inside installed packages. GGUF headers are in `gguf/header.py`.

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
from intraslice_core.config import ModelLimits
from intraslice_core.errors import BrokenCheckpointError, ModelNotFoundError, ModelTooLargeError

# -- safetensors headers -----------------------------------------------------------------------

MAX_HEADER_BYTES = 16 * 2**20
"""Largest header of one file; a shard of ten thousand tensors needs about 1 MiB."""

MAX_DIMENSIONS = 8

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


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


# -- settings and shards of a checkpoint directory ----------------------------------------------

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

DEFAULT_SHARD_BYTES = 5_000_000_000
"""Default size limit of a shard; the writer starts a new file before it is exceeded."""

RESERVED_HEADER_BYTES = 64 * 1024
"""Space reserved before the data, because the header is known last; the rest is blanks."""

TIGHT_BELOW_BYTES = 64 * 2**20
"""Size below which a file is rewritten with a header of exactly the needed length."""

MAX_SHARDS = 2_000
MAX_SETTINGS_BYTES = 64 * 2**20
"""Largest JSON or vocabulary file; the largest tokenizers in use take half of it."""

_SETTINGS_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")


def read_json(file: Path) -> Any:
    """Return the value in a JSON file of the checkpoint.

    Raises:
        BrokenCheckpointError: if the file is missing, too large or not JSON.
    """
    try:
        _require_small(file)
        return json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BrokenCheckpointError(f"{file.name} is missing", field="model") from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpointError(f"{file.name} is not JSON", field="model") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of the checkpoint.

    Raises:
        BrokenCheckpointError: if the file is missing, too large or not a JSON object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise BrokenCheckpointError(f"{file.name} is not a JSON object", field="model")
    return value


def require_small_settings(directory: Path) -> None:
    """Raise if a settings or vocabulary file is too large for a library to read whole.

    Raises:
        BrokenCheckpointError: naming the file.
    """
    for pattern in _SETTINGS_PATTERNS:
        for file in directory.glob(pattern):
            _require_small(file)


def shard_names(directory: Path) -> list[str]:
    """Return the names of the safetensors files of a checkpoint.

    Raises:
        BrokenCheckpointError: if there are none, or if a file named by the index is missing.
    """
    if (directory / INDEX_FILE).is_file():
        weight_map = read_json_object(directory / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BrokenCheckpointError(f"{INDEX_FILE} has no weight_map", field="model")
        shards = sorted({str(name) for name in weight_map.values()})
    else:
        shards = [SINGLE_FILE]
    if len(shards) > MAX_SHARDS:
        raise BrokenCheckpointError(
            f"{INDEX_FILE} names {len(shards)} files, at most {MAX_SHARDS} are allowed",
            field="model",
        )
    for shard in shards:
        if Path(shard).name != shard or "\0" in shard:
            raise BrokenCheckpointError(
                f"{INDEX_FILE} points outside the checkpoint: {shard!r}", field="model"
            )
        if not (directory / shard).is_file():
            raise _missing_weights(directory, shard, single=len(shards) == 1)
    return shards


def locate_tensors(directory: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Return the file name and the header entry of every tensor.

    Raises:
        BrokenCheckpointError: naming the file at fault.
    """
    file_of: dict[str, str] = {}
    entries: dict[str, TensorEntry] = {}
    for shard in shard_names(directory):
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


def _missing_weights(directory: Path, shard: str, *, single: bool) -> BrokenCheckpointError:
    pickles = sorted(file.name for file in directory.glob("*.bin")) if single else []
    if pickles:
        return BrokenCheckpointError(
            f"the checkpoint has only pickle weights ({pickles[0]}), and pickles can run code",
            field="model",
            hint="convert the checkpoint to safetensors",
        )
    return BrokenCheckpointError(f"{shard} is missing", field="model")


def _require_small(file: Path) -> None:
    size = file.stat().st_size
    if size > MAX_SETTINGS_BYTES:
        raise BrokenCheckpointError(
            f"{file.name}: {size} bytes of settings, at most {MAX_SETTINGS_BYTES} are allowed",
            field="model",
        )


# -- model facts and limits --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Type and size of a model, read from headers; `bytes` counts the weight files."""

    model_type: str | None
    parameters: int
    bytes: int


def inspect_model(place: Path) -> ModelFacts:
    """Return type and size of a model in a directory of safetensors or a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a header is invalid, or if this process may not read a file.
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
    require_small_settings(place)
    model_type = read_json_object(place / CONFIG_FILE).get("model_type")
    file_of, entries = locate_tensors(place)
    return ModelFacts(
        model_type=model_type if isinstance(model_type, str) else None,
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        bytes=sum((place / file).stat().st_size for file in set(file_of.values())),
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
