"""Writing a checkpoint: streamed, sharded, all or nothing."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints.inspection import (
    DEFAULT_SHARD_BYTES,
    INDEX_FILE,
    RESERVED_HEADER_BYTES,
    SINGLE_FILE,
    TIGHT_BELOW_BYTES,
    read_json,
)
from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.device import DTYPE_NAMES
from intraslice_core.errors import (
    InsufficientDiskError,
    IntraSliceError,
    OutputExistsError,
    VerificationError,
)
from intraslice_core.files import file_sha256


class ShardFile:
    """One safetensors file, appended to until it is closed.

    Args:
        path: the file; it must not exist.
        metadata: kept in the header; the format's name is, in any case.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._metadata = {"format": "pt", **(metadata or {})}
        self.data_bytes = 0
        self._entries: dict[str, dict[str, object]] = {}
        self._stream = path.open("x+b")
        self._stream.seek(8 + RESERVED_HEADER_BYTES)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors written so far."""
        return tuple(self._entries)

    def has_room(self, name: str, size: int, max_bytes: int) -> bool:
        """Whether a tensor of `size` bytes still fits; an empty shard takes any tensor."""
        if not self._entries:
            return True
        header = len(self._header()) + len(name) + 256
        return header <= RESERVED_HEADER_BYTES and self.data_bytes + size <= max_bytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a contiguous CPU tensor."""
        size = tensor.numel() * tensor.element_size()
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.data_bytes, self.data_bytes + size],
        }
        self._stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        self.data_bytes += size

    def close(self) -> None:
        """Write the header and make the file durable."""
        header = self._header()
        length = RESERVED_HEADER_BYTES
        if self.data_bytes < TIGHT_BELOW_BYTES:
            length = len(header) + -len(header) % 8  # safetensors aligns its data to 8 bytes
            self._move_data(length)
        self._stream.seek(0)
        self._stream.write(length.to_bytes(8, "little") + header.ljust(length))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _move_data(self, header_bytes: int) -> None:
        """Let the data begin right behind a header of that size."""
        self._stream.seek(8 + RESERVED_HEADER_BYTES)
        data = self._stream.read()
        self._stream.seek(8 + header_bytes)
        self._stream.write(data)
        self._stream.truncate()

    def abandon(self) -> None:
        """Close without a header; the file is rubbish afterwards."""
        self._stream.close()

    def _header(self) -> bytes:
        entries = {"__metadata__": self._metadata} | self._entries
        return json.dumps(entries, separators=(",", ":")).encode()


WEIGHTS = "*.safetensors"


@dataclass(frozen=True, kw_only=True)
class WrittenRecord:
    """SHA-256 of a checkpoint's contents, taken as they were written."""

    tensors: Mapping[str, str]
    """Of each tensor's bytes, by name."""
    files: Mapping[str, str]
    """Of each file that holds no weights, by name."""


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file that holds no weights."""
    weights = set(directory.glob(WEIGHTS))
    return {file.name: file_sha256(file) for file in sorted(set(directory.iterdir()) - weights)}


def require_as_written(directory: Path, record: WrittenRecord) -> None:
    """Compare what lies on disk with what was in memory.

    Raises:
        VerificationError: naming the tensors and files that differ.
    """
    changed = [*_changed_tensors(directory, record), *_changed_files(directory, record)]
    if changed:
        raise VerificationError(
            f"not what was written: {', '.join(changed[:8])}"
            + (f" and {len(changed) - 8} more" if len(changed) > 8 else ""),
            hint="look at the disk, and compress again",
        )


def _changed_tensors(directory: Path, record: WrittenRecord) -> Iterator[str]:
    try:
        with StoredTensors(directory) as stored:
            yield from sorted(set(record.tensors) ^ set(stored.names))
            for name in set(record.tensors) & set(stored.names):
                if tensor_digest(stored.tensor(name)) != record.tensors[name]:
                    yield name
    except IntraSliceError as error:
        yield error.message


def _changed_files(directory: Path, record: WrittenRecord) -> Iterator[str]:
    found = file_digests(directory)
    for name, digest in record.files.items():
        if found.get(name) != digest:
            yield name


CARRIED_OVER = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template*.jinja",
    "chat_template*.json",
    "generation_config.json",
    "LICENSE*",
)
"""What goes from the dense checkpoint into the sliced one; never code, and nothing that names any.

Whoever loads the result allows *our* code to run, and must not run somebody else's by it.
"""

_NAMES_CODE = ("auto_map", "custom_generate")


def require_free_output(out: Path) -> None:
    """Refuse an output that is already there (an empty directory is not).

    Raises:
        OutputExistsError: if `out` is a file or a directory with something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(
            f"{out} already exists", field="out", hint="give another directory or remove it"
        )


def ensure_disk_space(out: Path, bytes_needed: int) -> None:
    """Check, before any work, that the file system of `out` can hold the result.

    Raises:
        InsufficientDiskError: saying how much is needed and how much is free.
    """
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < bytes_needed:
        raise InsufficientDiskError(
            f"{place} has {free / 1e9:.2f} GB free, the result needs {bytes_needed / 1e9:.2f} GB",
            field="out",
        )


class CheckpointWriter:
    """Writes into a sibling of `out` and renames it at the end.

    A context manager: leaving it without `finish`, by an exception or a cancellation, leaves
    nothing behind.

    Args:
        out: the directory to become; absent or empty.
        dtype: of the stored tensors; None keeps each tensor's own.
        max_shard_bytes: a new file is begun before this is passed (a larger tensor gets its own).

    Raises:
        OutputExistsError: if `out` holds something already.
    """

    def __init__(
        self,
        out: Path,
        *,
        dtype: torch.dtype | None = None,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        require_free_output(out)
        self.out = out
        self.dtype = dtype
        self.max_shard_bytes = max_shard_bytes
        self._shards: list[ShardFile] = []
        self._digests: dict[str, str] = {}
        self._files: dict[str, str] = {}
        out.parent.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self._shards:
            shard.abandon()
        shutil.rmtree(self._work, ignore_errors=True)  # gone already after `finish`

    @property
    def bytes_written(self) -> int:
        """Bytes of all tensors so far."""
        return sum(shard.data_bytes for shard in self._shards)

    @property
    def record(self) -> WrittenRecord:
        """Digests of what was written; of files once `finish` has returned."""
        return WrittenRecord(tensors=dict(self._digests), files=dict(self._files))

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors to disk at once, under their full names; no reference is kept.

        Raises:
            ValueError: if a name comes twice.
        """
        for name, tensor in tensors.items():
            if any(name in shard.names for shard in self._shards):
                raise ValueError(f"tensor {name} was written before")
            stored = tensor.detach().to("cpu", self.dtype or tensor.dtype).contiguous()
            self._digests[name] = tensor_digest(stored)
            size = stored.numel() * stored.element_size()
            if not (self._shards and self._shards[-1].has_room(name, size, self.max_shard_bytes)):
                self._begin_shard()
            self._shards[-1].write(name, stored)

    def finish(self, config: PreTrainedConfig, source: Path) -> Path:
        """Add everything but the weights, make it durable and give it its name.

        Args:
            config: of the sliced model; the code files its `auto_map` names are copied along.
            source: the dense checkpoint, whose tokenizer and generation settings are carried over.

        Returns:
            `out`.

        Raises:
            OutputExistsError: if `out` appeared meanwhile.
        """
        if self._shards:
            self._shards[-1].close()
        self._name_shards()
        self._write_config(config)
        for pattern in CARRIED_OVER:
            for file in source.glob(pattern):
                if file.is_file():
                    _carry_over(file, self._work / file.name)
        self._files = file_digests(self._work)
        require_free_output(self.out)
        _make_durable(self._work)
        self._work.chmod(0o755)  # mkdtemp's 0700 would hide the result from its readers
        self._work.replace(self.out)
        sync_to_disk(self.out.parent)
        return self.out

    def _begin_shard(self) -> None:
        if self._shards:
            self._shards[-1].close()
        number = len(self._shards) + 1
        self._shards.append(ShardFile(self._work / f"model-{number:05d}.safetensors"))

    def _name_shards(self) -> None:
        """Final names, which count the shards, and the index if there is more than one."""
        if len(self._shards) == 1:
            self._shards[0].path.rename(self._work / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards, start=1):
            name = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            shard.path.rename(self._work / name)
            weight_map |= dict.fromkeys(shard.names, name)
        index = {"metadata": {"total_size": self.bytes_written}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (self._work / INDEX_FILE).write_text(text + "\n", encoding="utf-8")

    def _write_config(self, config: PreTrainedConfig) -> None:
        """config.json and the code that reads it."""
        stored = copy.deepcopy(config)
        if self.dtype is not None:
            stored.dtype = self.dtype
        stored.to_json_file(self._work / "config.json")
        code = Path(inspect.getfile(type(config))).parent
        for module in {entry.split(".")[0] for entry in getattr(config, "auto_map", {}).values()}:
            shutil.copyfile(code / f"{module}.py", self._work / f"{module}.py")


def _carry_over(file: Path, target: Path) -> None:
    """Copy; a JSON object loses what would make a loader fetch or run code."""
    settings = read_json(file) if file.suffix == ".json" else None
    if not isinstance(settings, dict) or not any(name in settings for name in _NAMES_CODE):
        shutil.copyfile(file, target)
        return
    harmless = {name: value for name, value in settings.items() if name not in _NAMES_CODE}
    target.write_text(json.dumps(harmless, indent=2) + "\n", encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Make a file, or the entries of a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable(directory: Path) -> None:
    """Force files and directory entries to disk, so that the rename never names a hollow one."""
    for file in directory.iterdir():
        sync_to_disk(file)
    sync_to_disk(directory)


__all__ = [
    "DEFAULT_SHARD_BYTES",
    "CheckpointWriter",
    "ensure_disk_space",
    "require_free_output",
]
