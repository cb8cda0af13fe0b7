"""The files of a safetensors checkpoint and the tensors they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.inspection.safetensors_header import MAX_TENSORS, TensorEntry, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

DEFAULT_SHARD_BYTES = 5_000_000_000
"""The writer begins another file before this is passed."""

RESERVED_HEADER_BYTES = 64 * 1024
"""Left free before the data, because the header is known last; unused space is blanks."""

TIGHT_BELOW_BYTES = 64 * 2**20
"""Files smaller than this are rewritten with a header of just its size."""

MAX_SHARDS = 2_000
MAX_SETTINGS_BYTES = 64 * 2**20
"""Of a JSON file or vocabulary; the largest tokenizers in use take half of it."""

_SETTINGS_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")


def read_json(file: Path) -> Any:
    """What a JSON file of the checkpoint holds.

    Raises:
        BrokenCheckpointError: if it is missing, too large or no JSON.
    """
    try:
        _require_small(file)
        return json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BrokenCheckpointError(f"{file.name} is missing", field="model") from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpointError(f"{file.name} is not JSON", field="model") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """The same, where it must be an object.

    Raises:
        BrokenCheckpointError: if it is missing, too large or no object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise BrokenCheckpointError(f"{file.name} is not a JSON object", field="model")
    return value


def require_small_settings(directory: Path) -> None:
    """Refuse settings and vocabularies that a library would read whole.

    Raises:
        BrokenCheckpointError: naming the file.
    """
    for pattern in _SETTINGS_PATTERNS:
        for file in directory.glob(pattern):
            _require_small(file)


def shard_names(directory: Path) -> list[str]:
    """The safetensors files that make the checkpoint.

    Raises:
        BrokenCheckpointError: if there are none, or one that the index names is missing.
    """
    if (directory / INDEX_FILE).is_file():
        weight_map = read_json_object(directory / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BrokenCheckpointError(f"{INDEX_FILE} has no weight_map", field="model")
        shards = sorted({str(name) for name in weight_map.values()})
    else:
        shards = [SINGLE_FILE]
    if len(shards) > MAX_SHARDS:
        raise BrokenCheckpointError(f"{INDEX_FILE} names {len(shards)} files", field="model")
    for shard in shards:
        if Path(shard).name != shard or "\0" in shard:
            raise BrokenCheckpointError(f"{INDEX_FILE} points outside: {shard!r}", field="model")
        if not (directory / shard).is_file():
            _refuse_missing(directory, shard, alone=len(shards) == 1)
    return shards


def locate_tensors(directory: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """File and header entry of every tensor.

    Raises:
        BrokenCheckpointError: naming the file at fault.
    """
    file_of: dict[str, str] = {}
    entries: dict[str, TensorEntry] = {}
    for shard in shard_names(directory):
        header = read_header(directory / shard)
        twice = entries.keys() & header.keys()
        if twice:
            raise BrokenCheckpointError(f"{shard}: tensor {min(twice)} is there twice")
        file_of |= dict.fromkeys(header, shard)
        entries |= header
        if len(entries) > MAX_TENSORS:
            raise BrokenCheckpointError(f"more than {MAX_TENSORS} tensors", field="model")
    return file_of, entries


def _refuse_missing(directory: Path, shard: str, *, alone: bool) -> None:
    pickles = sorted(p.name for p in directory.glob("*.bin")) if alone else []
    if pickles:
        raise BrokenCheckpointError(
            f"only pickle weights here ({pickles[0]}); pickles can run code",
            field="model",
            hint="convert the checkpoint to safetensors",
        )
    raise BrokenCheckpointError(f"{shard} is missing", field="model")


def _require_small(file: Path) -> None:
    size = file.stat().st_size
    if size > MAX_SETTINGS_BYTES:
        raise BrokenCheckpointError(
            f"{file.name}: {size} bytes of settings are not plausible", field="model"
        )
