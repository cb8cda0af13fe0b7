"""Reading a checkpoint lazily, after refusing what is broken."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from intraslice_core.checkpoints.headers import TensorEntry, read_header
from intraslice_core.errors import BrokenCheckpointError, NonFiniteWeightError
from intraslice_core.families import family_for, require_supported_type

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor, or refuse it.

    Raises:
        NonFiniteWeightError: naming the tensor, if it holds NaN or infinity.
    """
    # NaN and infinity survive min and max, and no mask of the tensor's size is built.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise NonFiniteWeightError(f"tensor {name} holds NaN or infinity", field="model")
    return tensor


class CheckpointReader:
    """A directory of safetensors, checked on opening, read tensor by tensor.

    Opening reads headers only and raises `UnsupportedArchitectureError` or
    `BrokenCheckpointError`. Tensors come memory-mapped, on the CPU, in the stored dtype. Use as a
    context manager; tensors already taken outlive it.

    Args:
        directory: holds config.json and model.safetensors or its shards with their index.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = _load_config(directory)
        self.family = family_for(self.config)
        self._file_of, self._entries = _locate_tensors(directory)
        self._require_tensors()
        self._stack = ExitStack()
        self._open_files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the files."""
        self._open_files.clear()
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(sorted(self._entries))

    @property
    def bytes_total(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the stored dtype.

        Raises:
            BrokenCheckpointError: if there is no such tensor or the file changed underneath.
        """
        file = self._file_of.get(name)
        if file is None:
            raise BrokenCheckpointError(f"tensor {name} is missing", field="model")
        try:
            if file not in self._open_files:
                opened = safe_open(self.directory / file, framework="pt", device="cpu")
                self._open_files[file] = self._stack.enter_context(opened)
            tensor: Tensor = self._open_files[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BrokenCheckpointError(f"{file}: {error}", field="model") from error
        return tensor

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by the rest of their name."""
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.names
            if name.startswith(prefix)
        }

    def _require_tensors(self) -> None:
        """Compare with what the architecture must have."""
        for name, shape in self.family.expected_shapes(self.config).items():
            entry = self._entries.get(name)
            if entry is None:
                raise BrokenCheckpointError(f"tensor {name} is missing", field="model")
            if entry.shape != shape:
                raise BrokenCheckpointError(
                    f"{self._file_of[name]}: tensor {name} has shape {list(entry.shape)}, "
                    f"config.json says {list(shape)}",
                    field="model",
                )
            if entry.dtype not in ("F64", "F32", "F16", "BF16"):
                raise BrokenCheckpointError(
                    f"tensor {name} is stored as {entry.dtype}",
                    field="model",
                    hint="give an unquantised checkpoint",
                )


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BrokenCheckpointError(f"{file.name} is missing", field="model") from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpointError(f"{file.name} is not JSON", field="model") from error
    if not isinstance(value, dict):
        raise BrokenCheckpointError(f"{file.name} is not a JSON object", field="model")
    return value


def _load_config(directory: Path) -> PreTrainedConfig:
    """The configuration; the model type is checked before transformers sees the file."""
    raw = _read_json(directory / "config.json")
    require_supported_type(raw.get("model_type"))
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers' validators raise whatever they like
        raise BrokenCheckpointError(f"config.json: {error}", field="model") from error
    return config


def _shard_names(directory: Path) -> list[str]:
    """The safetensors files that make the checkpoint.

    Raises:
        BrokenCheckpointError: if there are none, or one that the index names is missing.
    """
    if (directory / INDEX_FILE).is_file():
        weight_map = _read_json(directory / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BrokenCheckpointError(f"{INDEX_FILE} has no weight_map", field="model")
        shards = sorted({str(name) for name in weight_map.values()})
    else:
        shards = [SINGLE_FILE]
    for shard in shards:
        if Path(shard).name != shard:
            raise BrokenCheckpointError(f"{INDEX_FILE} points outside: {shard}", field="model")
        if not (directory / shard).is_file():
            pickles = sorted(p.name for p in directory.glob("*.bin")) if len(shards) == 1 else []
            if pickles:
                raise BrokenCheckpointError(
                    f"only pickle weights here ({pickles[0]}); pickles can run code",
                    field="model",
                    hint="convert the checkpoint to safetensors",
                )
            raise BrokenCheckpointError(f"{shard} is missing", field="model")
    return shards


def _locate_tensors(directory: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """File and header entry of every tensor."""
    file_of: dict[str, str] = {}
    entries: dict[str, TensorEntry] = {}
    for shard in _shard_names(directory):
        header = read_header(directory / shard)
        twice = entries.keys() & header.keys()
        if twice:
            raise BrokenCheckpointError(f"{shard}: tensor {min(twice)} is there twice")
        file_of |= dict.fromkeys(header, shard)
        entries |= header
    return file_of, entries
