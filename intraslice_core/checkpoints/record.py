"""What a writer had in memory, so that files can be compared with it and not with themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.errors import IntraSliceError, VerificationError

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
    digests = {}
    for file in sorted(set(directory.iterdir()) - weights):
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


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
