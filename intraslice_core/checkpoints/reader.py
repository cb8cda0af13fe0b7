"""Lazy readers of safetensors checkpoints.

`MappedFile` maps one file, `StoredTensors` reads the tensors of a directory, and `CheckpointReader`
also checks configuration, names and shapes against a supported family before anything is read.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import threading
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from intraslice_core import modeling
from intraslice_core.checkpoints.inspection import TensorEntry, locate_tensors
from intraslice_core.checkpoints.quantization import quantization_of
from intraslice_core.checkpoints.stored_names import (
    StoredTensor,
    by_model_name,
    has_separate_head,
    outer_names,
    tied_to_stored,
    unused_tensors_warnings,
)
from intraslice_core.checkpoints.weight_files import (
    CONFIG_FILE,
    CONVERSION_FILE,
    read_json_object,
    weight_files,
)
from intraslice_core.device import FLOAT_DTYPES, STORED_DTYPES
from intraslice_core.errors import (
    BrokenCheckpointError,
    NonFiniteWeightError,
    UnsupportedFormatError,
)
from intraslice_core.families import require_supported_type
from intraslice_core.families.compressed_adapter import adapter_for

_READ_BYTES = 4 * 2**20
"""Bytes that are read ahead at once."""
_SHORTENED = "the file was shortened after it was opened"

_MODEL_DTYPES = tuple(STORED_DTYPES[name] for name in FLOAT_DTYPES)


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
            raise OSError(_SHORTENED)
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

    def has(self, name: str) -> bool:
        """Return True if there is a tensor of this name."""
        return name in self._entries

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

    @property
    def parameters(self) -> int:
        """Return the number of values of all tensors."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor, from its header.

        Raises:
            BrokenCheckpointError: if there is no such tensor.
        """
        if name not in self._entries:
            raise BrokenCheckpointError(f"tensor {name} is missing", field="model")
        return self._entries[name].shape

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the data type of one tensor, from its header."""
        return STORED_DTYPES[self._entries[name].dtype]

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

    def read_ahead(self, names: Collection[str], stopped: threading.Event) -> None:
        """Read tensors from disk into the system's page cache; may be called from any thread.

        Args:
            names: of the tensors; missing ones are ignored.
            stopped: ends the reading early once it is set.

        Raises:
            BrokenCheckpointError: if a file cannot be read or was changed.
        """
        by_file: dict[str, list[TensorEntry]] = {}
        for name in names:
            if name in self._entries:
                by_file.setdefault(self._file_of[name], []).append(self._entries[name])
        for file, entries in by_file.items():
            try:
                with (self.directory / file).open("rb") as stream:
                    start = 8 + int.from_bytes(stream.read(8), "little")
                    for entry in entries:
                        bounds = start + entry.begin, start + entry.end
                        _read_range(stream.fileno(), bounds, stopped)
            except OSError as error:
                raise BrokenCheckpointError(f"{file}: {error}", field="model") from error

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return all tensors whose names start with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.names
            if name.startswith(prefix)
        }


def _read_range(descriptor: int, bounds: tuple[int, int], stopped: threading.Event) -> None:
    """Read the bytes between two offsets of a file and drop them."""
    position, end = bounds
    buffer = memoryview(bytearray(min(end - position, _READ_BYTES)))
    while position < end and not stopped.is_set():
        size = os.preadv(descriptor, [buffer[: end - position]], position)
        if size == 0:
            raise OSError(_SHORTENED)
        position += size


class CheckpointReader(StoredTensors):
    """Checkpoint of a supported family, checked on opening and read tensor by tensor.

    It holds what transformers loads from the directory: tensors have the names of the model, those
    that the model does not have are left out, and an output head that differs from the embedding is
    kept even if config.json ties them. Opening reads only the headers, except for a stored head of
    tied embeddings, which is compared with them.

    Args:
        directory: holds config.json and model.safetensors or its shards with their index.

    Raises:
        UnsupportedArchitectureError: if no family supports the model.
        UnsupportedFormatError: if the weights are quantised, or an adapter.
        BrokenCheckpointError: if a file is missing, invalid or contradicts config.json.
    """

    warnings: tuple[str, ...]
    """Remarks on what the checkpoint holds besides the model, for the report."""

    def __init__(self, directory: Path) -> None:
        raw = _raw_config(directory)
        super().__init__(directory)
        _require_plausible(raw, tensors=len(self._entries))
        self.config = load_config(directory)
        head_warning = self._untie_separate_head()
        self.family = adapter_for(self.config)
        expected = self.family.expected_shapes(self.config)
        unused = self._name_as_model(expected)
        self._require_tensors(expected)
        self.warnings = (
            *_conversion_warnings(directory),
            *weight_files(directory).warnings,
            *head_warning,
            *unused,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the model: that of config.json, else of the stored weights."""
        return model_dtype(self.config, self)

    def _untie_separate_head(self) -> tuple[str, ...]:
        """Untie embedding and head if both are stored with different values; return a warning."""
        if not self.config.tie_word_embeddings:
            return ()
        family = require_supported_type(self.config.model_type)
        if not has_separate_head(self.directory, family):
            return ()
        self.config.tie_word_embeddings = False
        return (
            f"config.json has tie_word_embeddings true, but the stored {outer_names(family).head} "
            "differs from the embedding: it is kept, as in transformers",
        )

    def _name_as_model(self, expected: Collection[str]) -> tuple[str, ...]:
        """Give the tensors the model's names, leave out others and return warnings about them."""
        outer = outer_names(self.family.family)
        stored = {
            name: StoredTensor(file=self._file_of[name], entry=entry)
            for name, entry in self._entries.items()
        }
        tensors = by_model_name(stored, {*expected, outer.head}, self.family.family)
        if self.config.tie_word_embeddings:
            tensors = tied_to_stored(tensors, outer)
        used = {name: tensor for name, tensor in tensors.items() if name in expected}
        self._file_of = {name: tensor.file for name, tensor in used.items()}
        self._entries = {name: tensor.entry for name, tensor in used.items()}
        return unused_tensors_warnings(tensors.keys() - expected, self.config.num_hidden_layers)

    def _require_tensors(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raise if a tensor of the architecture is missing or has a wrong shape or dtype."""
        for name, shape in expected.items():
            entry = self._entries.get(name)
            if entry is None:
                raise self._missing(name)
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

    def _missing(self, name: str) -> BrokenCheckpointError | UnsupportedFormatError:
        """Return the error for a missing tensor."""
        _, stored = locate_tensors(self.directory)
        packed = sorted(other for other in stored if _PACKED_WEIGHT.search(other))
        if packed:
            return UnsupportedFormatError(
                f"the weights are quantised: tensor {packed[0]} is packed",
                field="model",
                hint="give the unquantised model",
            )
        return BrokenCheckpointError(
            f"tensor {name} is missing",
            field="model",
            hint="transformers would initialise it at random; give a complete checkpoint of the "
            "causal language model",
        )


def _conversion_warnings(directory: Path) -> tuple[str, ...]:
    """Return the remarks of the conversion that wrote the checkpoint, if one did."""
    file = directory / CONVERSION_FILE
    remarks = read_json_object(file).get("warnings") if file.is_file() else None
    return tuple(map(str, remarks)) if isinstance(remarks, list) else ()


_PACKED_WEIGHT = re.compile(r"\.(qweight|qzeros|weight_packed|absmax|quant_map)$")
"""Names of tensors of GPTQ, AWQ, compressed-tensors and bitsandbytes."""


def model_dtype(config: PreTrainedConfig, stored: StoredTensors) -> torch.dtype:
    """Return the data type in which transformers loads a model by itself.

    It is the `dtype` of config.json, else that of the first floating-point tensor.
    """
    if config.dtype in _MODEL_DTYPES:
        return config.dtype
    dtypes = (stored.stored_dtype(name) for name in stored.names)
    return next((dtype for dtype in dtypes if dtype in _MODEL_DTYPES), torch.float32)


def _raw_config(directory: Path) -> dict[str, Any]:
    """Return config.json if its model type is supported and its weights are not quantised."""
    raw = read_json_object(directory / CONFIG_FILE)
    require_supported_type(raw.get("model_type"), raw)
    quantization = quantization_of(raw)
    if quantization is not None:
        raise UnsupportedFormatError(
            f"the weights are quantised with {quantization.description}",
            field="model",
            hint="open the model with `open_model`, which dequantises it",
        )
    return raw


def _require_plausible(raw: dict[str, Any], *, tensors: int) -> None:
    """Raise on an impossible number of layers before the names of their tensors are enumerated."""
    layers = raw.get("num_hidden_layers")
    if type(layers) is int and layers > tensors:
        raise BrokenCheckpointError(
            f"{CONFIG_FILE} says {layers} layers, but the files hold only {tensors} tensors",
            field="model",
        )


def load_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration without running code that it may name.

    Raises:
        BrokenCheckpointError: if config.json is malformed.
    """
    modeling.register()  # results of earlier compressions are inputs, too
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers' validators share no exception class
        raise BrokenCheckpointError(f"config.json: {error}", field="model") from error
    return config
