"""Streaming, atomic writer of sharded safetensors checkpoints, with digests of what it wrote.

Sections: one shard file, the record of written tensors and files and its comparison with the disk,
checks before writing, and the writer of a whole checkpoint directory.
"""

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
from transformers.dynamic_module_utils import get_relative_import_files

from intraslice_core.checkpoints.inspection import (
    DEFAULT_SHARD_BYTES,
    RESERVED_HEADER_BYTES,
    TIGHT_BELOW_BYTES,
)
from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.checkpoints.weight_files import INDEX_FILE, SINGLE_FILE, read_json
from intraslice_core.device import DTYPE_NAMES
from intraslice_core.errors import (
    InsufficientDiskError,
    IntraSliceError,
    VerificationError,
)
from intraslice_core.files import file_sha256, require_free_output
from intraslice_core.substeps import report_substep

# -- one shard file ----------------------------------------------------------------------------


class ShardFile:
    """Safetensors file that tensors are appended to until it is closed.

    Args:
        path: the file; it must not exist.
        metadata: additional entries of the header's metadata, beside the format's name.
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
        """Return the names of the tensors written so far."""
        return tuple(self._entries)

    def has_room(self, name: str, size: int, max_bytes: int) -> bool:
        """Return True if a tensor of `size` bytes still fits; an empty shard takes any tensor."""
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
        """Write the header and flush the file to disk."""
        header = self._header()
        length = RESERVED_HEADER_BYTES
        if self.data_bytes < TIGHT_BELOW_BYTES:
            length = len(header) + -len(header) % 8  # safetensors aligns the data to 8 bytes
            self._move_data(length)
        self._stream.seek(0)
        self._stream.write(length.to_bytes(8, "little") + header.ljust(length))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _move_data(self, header_bytes: int) -> None:
        """Move the data to directly after a header of `header_bytes` bytes."""
        self._stream.seek(8 + RESERVED_HEADER_BYTES)
        data = self._stream.read()
        self._stream.seek(8 + header_bytes)
        self._stream.write(data)
        self._stream.truncate()

    def abandon(self) -> None:
        """Close without a header; the file is unusable afterwards."""
        self._stream.close()

    def _header(self) -> bytes:
        entries = {"__metadata__": self._metadata} | self._entries
        return json.dumps(entries, separators=(",", ":")).encode()


# -- record of what was written, and its comparison with the disk -------------------------------

WEIGHTS = "*.safetensors"


@dataclass(frozen=True, kw_only=True)
class WrittenRecord:
    """SHA-256 digests of a checkpoint's contents, computed while they were written."""

    tensors: Mapping[str, str]
    """Digest of each tensor's bytes, by name."""
    files: Mapping[str, str]
    """Digest of each file that holds no weights, by relative path."""


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `directory` that holds no weights, by relative path."""
    files = {path for path in directory.rglob("*") if path.is_file()}
    return {
        file.relative_to(directory).as_posix(): file_sha256(file)
        for file in sorted(files - set(directory.glob(WEIGHTS)))
    }


def require_as_written(directory: Path, record: WrittenRecord) -> None:
    """Raise if the files on disk differ from the tensors that were in memory.

    Raises:
        VerificationError: naming the tensors and files that differ.
    """
    changed = [*_changed_tensors(directory, record), *_changed_files(directory, record)]
    if changed:
        raise VerificationError(
            f"the files in {directory} differ from what was written: {', '.join(changed[:8])}"
            + (f" and {len(changed) - 8} more" if len(changed) > 8 else ""),
            hint="check the disk and compress again",
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
    stored = file_digests(directory)
    for name, digest in record.files.items():
        if stored.get(name) != digest:
            yield name


# -- checks before writing ---------------------------------------------------------------------


def ensure_disk_space(out: Path, bytes_needed: int) -> None:
    """Raise before any work if the file system of `out` cannot hold the result.

    Raises:
        InsufficientDiskError: naming the needed and the free space.
    """
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < bytes_needed:
        raise InsufficientDiskError(
            f"{parent} has {free / 1e9:.2f} GB free, the result needs {bytes_needed / 1e9:.2f} GB",
            field="out",
            hint="free some space or give a directory on another disk",
        )


# -- the writer of a checkpoint directory --------------------------------------------------------

CARRIED_OVER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("*vocab*.json", "vocab.txt", "merges.txt", "dict.txt", "bpe.codes"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer"),
    *("normalizer.json", "emoji.json", "byte_maps.json", "word_*.json"),
    *("chat_template*.jinja", "chat_template*.json", "additional_chat_templates/*.jinja"),
    *("generation_config.json", "processor_config.json", "*preprocessor_config.json"),
    *("audio_tokenizer_config.json", "LICENSE*", "NOTICE*"),
)
"""Files copied from the dense checkpoint into the sliced one; never code or references to code.

They are the files beside the weights that transformers' tokenizers and processors read: the names
in their `vocab_files_names`, their settings and their chat templates.

Users who load the result with `trust_remote_code` agree to run IntraSlice's modeling code, and
must not run code of the dense checkpoint by it.
"""

_NAME_CHARACTERS = 50
"""Characters of an output's name in that of its partial directory; names are at most 255 bytes."""

_CODE_SETTINGS = ("auto_map", "custom_generate")
"""Settings in JSON files that make a loader fetch or run code."""


class CheckpointWriter:
    """Writer of a checkpoint into a sibling of `out`, which is renamed to `out` at the end.

    Use as a context manager: leaving it without `finish`, by an exception or a cancellation,
    removes everything that was written.

    Args:
        out: the output directory; absent or empty.
        dtype: dtype of the stored tensors; None keeps each tensor's own.
        max_shard_bytes: size limit of a file; a larger tensor gets a file of its own.

    Raises:
        OutputExistsError: if `out` is a file or not empty.
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
        self._work = Path(
            tempfile.mkdtemp(prefix=f".{out.name[:_NAME_CHARACTERS]}.partial-", dir=out.parent)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self._shards:
            shard.abandon()
        shutil.rmtree(self._work, ignore_errors=True)  # already renamed after `finish`

    @property
    def bytes_written(self) -> int:
        """Return the total size in bytes of the tensors written so far."""
        return sum(shard.data_bytes for shard in self._shards)

    @property
    def record(self) -> WrittenRecord:
        """Return the digests of the tensors and, after `finish`, of the other files."""
        return WrittenRecord(tensors=dict(self._digests), files=dict(self._files))

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors to disk immediately, under their full names; no reference is kept.

        Raises:
            ValueError: if a tensor of that name was written before.
        """
        for name, tensor in tensors.items():
            if any(name in shard.names for shard in self._shards):
                raise ValueError(f"tensor {name} was written before")
            stored = tensor.detach().to("cpu", self.dtype or tensor.dtype).contiguous()
            self._digests[name] = tensor_digest(stored)
            size = stored.numel() * stored.element_size()
            if not (self._shards and self._shards[-1].has_room(name, size, self.max_shard_bytes)):
                self._start_shard()
            self._shards[-1].write(name, stored)
            report_substep(f"wrote {name}")

    def finish(self, config: PreTrainedConfig, source: Path) -> Path:
        """Write everything but the weights, flush it to disk and rename the directory to `out`.

        Args:
            config: configuration of the sliced model; the code files that its `auto_map` names are
                copied, with the modules that these import relatively.
            source: the dense checkpoint, whose tokenizer and generation settings are copied.

        Returns:
            `out`.

        Raises:
            OutputExistsError: if `out` was created in the meantime.
        """
        if self._shards:
            self._shards[-1].close()
        self._name_shards()
        self._write_config(config)
        for pattern in CARRIED_OVER:
            for file in source.glob(pattern):
                if file.is_file():
                    _copy_without_code(file, self._work / file.relative_to(source))
        self._files = file_digests(self._work)
        require_free_output(self.out)
        _sync_directory(self._work)
        self._work.chmod(0o755)  # mkdtemp's 0700 would make the result unreadable for other users
        self._work.replace(self.out)
        sync_to_disk(self.out.parent)
        return self.out

    def _start_shard(self) -> None:
        if self._shards:
            self._shards[-1].close()
        number = len(self._shards) + 1
        self._shards.append(ShardFile(self._work / f"model-{number:05d}.safetensors"))

    def _name_shards(self) -> None:
        """Rename the shards to their final names and write the index if there are several."""
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
        """Write config.json and copy the modeling code."""
        stored = copy.deepcopy(config)
        if self.dtype is not None:
            stored.dtype = self.dtype
        stored.to_json_file(self._work / "config.json")
        code = Path(inspect.getfile(type(config))).parent
        for module in {entry.split(".")[0] for entry in getattr(config, "auto_map", {}).values()}:
            file = code / f"{module}.py"
            for source in (file, *map(Path, get_relative_import_files(file))):
                shutil.copyfile(source, self._work / source.name)


def _copy_without_code(file: Path, target: Path) -> None:
    """Copy a file, a JSON object without the settings that make a loader fetch or run code."""
    target.parent.mkdir(exist_ok=True)
    settings = read_json(file) if file.suffix == ".json" else None
    if not isinstance(settings, dict) or not any(name in settings for name in _CODE_SETTINGS):
        shutil.copyfile(file, target)
        return
    harmless = {name: value for name, value in settings.items() if name not in _CODE_SETTINGS}
    target.write_text(json.dumps(harmless, indent=2) + "\n", encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    """Flush a directory and its files to disk, so that a crash after the rename loses nothing."""
    for path in directory.rglob("*"):
        sync_to_disk(path)
    sync_to_disk(directory)
