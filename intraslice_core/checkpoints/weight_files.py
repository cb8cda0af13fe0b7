"""Files of a checkpoint directory: JSON settings, and the files that hold its weights.

transformers' precedence decides which files hold the weights: `model.safetensors` comes before an
index of shards. The module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from intraslice_core.errors import BrokenCheckpointError, UnsupportedFormatError
from intraslice_core.files import is_lfs_pointer

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
CONVERSION_FILE = "conversion.json"
"""File that a conversion adds to its result: the key `warnings` has remarks for the report."""

MAX_SHARDS = 2_000
MAX_SETTINGS_BYTES = 64 * 2**20
"""Largest JSON or vocabulary file; the largest tokenizers in use take half of it."""

_SETTINGS_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")
_EXPLICIT_FILE = "transformers_weights"
"""Setting of config.json that names the file with the weights or its index."""

_OTHER_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "*.bin": "pickle",
        "*.pth": "pickle",
        "*.pt": "pickle",
        "*.ckpt": "pickle",
        "*.msgpack": "Flax",
        "*.h5": "TensorFlow",
        "*.npz": "NumPy",
    }
)
"""Formats of weights that are not read, by the pattern of their file names."""


# -- JSON settings ------------------------------------------------------------------------------


def read_json(file: Path) -> Any:
    """Return the value in a JSON file of the checkpoint.

    Raises:
        BrokenCheckpointError: if the file is missing, too large, a git-lfs pointer or not JSON.
    """
    try:
        _require_small(file)
        return json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BrokenCheckpointError(f"{file.name} is missing", field="model") from error
    except (ValueError, RecursionError) as error:
        require_no_lfs_pointer(file)
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


def require_readable_settings(directory: Path) -> None:
    """Raise if a settings or vocabulary file is a git-lfs pointer or too large to be read whole.

    Raises:
        BrokenCheckpointError: naming the file.
    """
    for pattern in _SETTINGS_PATTERNS:
        for file in directory.glob(pattern):
            _require_small(file)
            require_no_lfs_pointer(file)


def require_no_lfs_pointer(file: Path) -> None:
    """Raise if a file is a git-lfs pointer, which `git clone` leaves without git-lfs.

    Raises:
        BrokenCheckpointError: naming the file.
    """
    if not is_lfs_pointer(file):
        return
    raise BrokenCheckpointError(
        f"{file.name} is a git-lfs pointer, not the file itself",
        field="model",
        hint=f"run `git lfs pull` in {file.parent}",
    )


def _require_small(file: Path) -> None:
    size = file.stat().st_size
    if size > MAX_SETTINGS_BYTES:
        raise BrokenCheckpointError(
            f"{file.name}: {size} bytes of settings, at most {MAX_SETTINGS_BYTES} are allowed",
            field="model",
        )


# -- files that hold the weights ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """Names of the safetensors files that hold a checkpoint's weights."""

    names: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Remarks on files beside them that are not read."""


def weight_files(directory: Path) -> WeightFiles:
    """Return the safetensors files of a checkpoint, by transformers' precedence.

    The setting `transformers_weights` comes first, then model.safetensors, then the index.

    Raises:
        BrokenCheckpointError: if there are none, or if a file named by the index is missing.
        UnsupportedFormatError: if it holds an adapter.
    """
    _require_no_adapter(directory)
    explicit = _explicit_file(directory)
    if explicit is not None:
        index = explicit if explicit.endswith(".index.json") else None
        names = _indexed_files(directory, explicit) if index else (explicit,)
        return WeightFiles(names=_existing_files(directory, names, index or CONFIG_FILE))
    if (directory / SINGLE_FILE).is_file():
        return WeightFiles(names=(SINGLE_FILE,), warnings=_stale_index(directory))
    if (directory / INDEX_FILE).is_file():
        names = _indexed_files(directory, INDEX_FILE)
        return WeightFiles(names=_existing_files(directory, names, INDEX_FILE))
    raise _no_weights(directory)


def weight_bytes(directory: Path) -> int:
    """Return the size in bytes of the files that hold a checkpoint's weights."""
    return sum((directory / name).stat().st_size for name in weight_files(directory).names)


def _require_no_adapter(directory: Path) -> None:
    file = directory / ADAPTER_FILE
    if not file.is_file():
        return
    settings = read_json_object(file)
    base = settings.get("base_model_name_or_path") or "its base model"
    raise UnsupportedFormatError(
        f"{ADAPTER_FILE} describes a {settings.get('peft_type') or 'PEFT'} adapter of {base}",
        field="model",
        hint="merge it into its base first (`merge_and_unload` of peft) and give the merged model",
    )


def _explicit_file(directory: Path) -> str | None:
    """Return the file that the setting `transformers_weights` names, if any.

    Raises:
        BrokenCheckpointError: if it is not a safetensors file or its index in the directory.
    """
    file = directory / CONFIG_FILE
    name = read_json_object(file).get(_EXPLICIT_FILE) if file.is_file() else None
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise BrokenCheckpointError(
            f"{CONFIG_FILE}: {_EXPLICIT_FILE} {name!r} is not a safetensors file or its index",
            field="model",
        )
    _require_inside(name, CONFIG_FILE)
    return name


def _indexed_files(directory: Path, index: str) -> tuple[str, ...]:
    weight_map = read_json_object(directory / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenCheckpointError(f"{index} has no weight_map", field="model")
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise BrokenCheckpointError(
            f"{index} names {len(names)} files, at most {MAX_SHARDS} are allowed", field="model"
        )
    return tuple(names)


def _existing_files(directory: Path, names: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Return the names after checking that the files are in the directory."""
    for name in names:
        _require_inside(name, source)
        if not (directory / name).is_file():
            raise BrokenCheckpointError(f"{name} is missing ({source} names it)", field="model")
    return names


def _require_inside(name: str, source: str) -> None:
    if Path(name).name != name or "\0" in name:
        raise BrokenCheckpointError(
            f"{source} points outside the checkpoint: {name!r}", field="model"
        )


def _stale_index(directory: Path) -> tuple[str, ...]:
    """Return a warning if an index beside model.safetensors names other files."""
    if not (directory / INDEX_FILE).is_file():
        return ()
    try:
        names = _indexed_files(directory, INDEX_FILE)
    except BrokenCheckpointError:
        names = ()
    if names == (SINGLE_FILE,):
        return ()
    return (
        f"{INDEX_FILE} is stale and was ignored: {SINGLE_FILE} is beside it, "
        "and transformers reads that file",
    )


def _no_weights(directory: Path) -> BrokenCheckpointError:
    """Return the error for a directory without model.safetensors and index."""
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if any(name.startswith("consolidated") for name in others):
        return BrokenCheckpointError(
            f"{others[0]} is in Mistral's own format, which transformers does not load",
            field="model",
            hint=f"download {SINGLE_FILE} or its shards and their index from the same repository",
        )
    if others:
        return BrokenCheckpointError(
            f"neither {SINGLE_FILE} nor {INDEX_FILE} is there, only {', '.join(others[:3])}",
            field="model",
            hint=f"rename a whole model to {SINGLE_FILE}, or add the index of its shards",
        )
    for pattern, form in _OTHER_FORMATS.items():
        for file in sorted(directory.glob(pattern)):
            danger = ", and pickles can run code" if form == "pickle" else ""
            return BrokenCheckpointError(
                f"the checkpoint has only {form} weights ({file.name}){danger}",
                field="model",
                hint="convert the checkpoint to safetensors",
            )
    return BrokenCheckpointError(f"{SINGLE_FILE} is missing", field="model")
