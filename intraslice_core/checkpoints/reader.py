"""Lazy readers of safetensors checkpoints.

`MappedFile` maps one file, `StoredTensors` reads the tensors of a directory, and `CheckpointReader`
also checks configuration, names and shapes against a supported family before anything is read.
"""

from __future__ import annotations

import math
import mmap
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from intraslice_core.checkpoints.inspection import (
    CONFIG_FILE,
    TensorEntry,
    locate_tensors,
    read_json_object,
)
from intraslice_core.device import FLOAT_DTYPES, STORED_DTYPES
from intraslice_core.errors import BrokenCheckpointError, NonFiniteWeightError
from intraslice_core.families import require_supported_type
from intraslice_core.families.adapter import family_for


class MappedFile:
    """Memory-mapped tensors of one file whose header was checked; they must not be written to.

    Raises:
        OSError: if the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            self._begin = 8 + int.from_bytes(stream.read(8), "little")
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, entry: TensorEntry) -> Tensor:
        """Return one tensor; it outlives this object.

        Raises:
            OSError: if the file has been shortened.
        """
        begin, end = self._begin + entry.begin, self._begin + entry.end
        if end > len(self._bytes):
            raise OSError("the file was shortened after it was opened")
        dtype = STORED_DTYPES[entry.dtype]
        if begin == end:
            return torch.empty(entry.shape, dtype=dtype)
        with warnings.catch_warnings():  # torch warns about every read-only buffer
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(
                self._bytes, dtype=dtype, count=math.prod(entry.shape), offset=begin
            )
        return flat.view(entry.shape)


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor unchanged if all of its values are finite.

    Raises:
        NonFiniteWeightError: naming the tensor, if it contains NaN or infinity.
    """
    # NaN and infinity propagate through min and max, so no mask of the tensor's size is needed.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise NonFiniteWeightError(f"tensor {name} contains NaN or infinity", field="model")
    return tensor


class StoredTensors:
    """Tensors of a directory of safetensors, for any model; opening reads only the headers.

    Tensors are memory-mapped, read-only, on the CPU and in the stored dtype. Use as a context
    manager; tensors that were read outlive it.

    Args:
        directory: holds model.safetensors or its shards with their index.

    Raises:
        BrokenCheckpointError: if a header or the index is wrong.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file_of, self._entries = locate_tensors(directory)
        self._open_files: dict[str, MappedFile] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the files."""
        self._open_files.clear()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self._entries))

    @property
    def bytes_total(self) -> int:
        """Return the total size of all tensors in bytes."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor, from its header.

        Raises:
            BrokenCheckpointError: if there is no such tensor.
        """
        if name not in self._entries:
            raise BrokenCheckpointError(f"tensor {name} is missing", field="model")
        return self._entries[name].shape

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, in the stored dtype.

        Raises:
            BrokenCheckpointError: if there is no such tensor or the file was changed.
        """
        file = self._file_of.get(name)
        if file is None:
            raise BrokenCheckpointError(f"tensor {name} is missing", field="model")
        try:
            if file not in self._open_files:
                self._open_files[file] = MappedFile(self.directory / file)
            return self._open_files[file].tensor(self._entries[name])
        except OSError as error:
            raise BrokenCheckpointError(f"{file}: {error}", field="model") from error

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return all tensors whose names start with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.names
            if name.startswith(prefix)
        }


class CheckpointReader(StoredTensors):
    """Checkpoint of a supported family, checked on opening and read tensor by tensor.

    Opening reads only the headers.

    Args:
        directory: holds config.json and model.safetensors or its shards with their index.

    Raises:
        UnsupportedArchitectureError: if no family supports the model.
        BrokenCheckpointError: if a file is missing, invalid or contradicts config.json.
    """

    def __init__(self, directory: Path) -> None:
        raw = _raw_config(directory)
        super().__init__(directory)
        _require_plausible(raw, tensors=len(self._entries))
        self.config = _load_config(directory)
        self.family = family_for(self.config)
        self._rename_tensors()
        self._require_tensors()

    def _rename_tensors(self) -> None:
        """Give the tensors of an older checkpoint their present names."""
        for stored in self.names:
            present = self.family.present_name(stored)
            if present not in self._entries:
                self._entries[present] = self._entries.pop(stored)
                self._file_of[present] = self._file_of.pop(stored)

    def _require_tensors(self) -> None:
        """Raise if a tensor of the architecture is missing or has a wrong shape or dtype."""
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
            if entry.dtype not in FLOAT_DTYPES:
                raise BrokenCheckpointError(
                    f"{self._file_of[name]}: tensor {name} is stored as {entry.dtype}, "
                    f"expected one of {', '.join(FLOAT_DTYPES)}",
                    field="model",
                    hint="give an unquantised checkpoint",
                )


def _raw_config(directory: Path) -> dict[str, Any]:
    """Return config.json if its model type is supported."""
    raw = read_json_object(directory / CONFIG_FILE)
    require_supported_type(raw.get("model_type"))
    return raw


def _require_plausible(raw: dict[str, Any], *, tensors: int) -> None:
    """Raise on an impossible number of layers before the names of their tensors are enumerated."""
    layers = raw.get("num_hidden_layers")
    if type(layers) is int and layers > tensors:
        raise BrokenCheckpointError(
            f"{CONFIG_FILE} says {layers} layers, but the files hold only {tensors} tensors",
            field="model",
        )


def _load_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration without running code that it may name."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers' validators share no exception class
        raise BrokenCheckpointError(f"config.json: {error}", field="model") from error
    return config
