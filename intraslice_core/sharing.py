"""What runs of one model at different ratios have in common, kept on disk under its content's name.

The calibration tokens and the dense stream do not depend on the ratio; the compressed stream and
everything solved on it do. A run that finds the tokens need not read, or write, its text; one that
finds the dense stream after a half layer need not compute it. Names are digests of everything the
content depends on, so a run finds what it would have made itself, bit for bit, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor

import intraslice_core
from intraslice_core.config import CalibrationConfig

Half = Literal["attention", "mlp"]

_SUFFIX = ".safetensors"
_TENSOR = "shared"
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "token*", "*.model")


_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(kw_only=True)
class SharedFiles:
    """Tensors by name in a directory that several runs may use at once.

    What does not fit into `max_bytes` is not kept, which costs time and nothing else.
    """

    directory: Path
    max_bytes: int
    found: int = field(default=0, init=False)
    made: int = field(default=0, init=False)

    def load(self, name: str) -> Tensor | None:
        """The tensor, memory-mapped; None if nobody has kept it, or only a part of it."""
        file = self.directory / (name + _SUFFIX)
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensor: Tensor = opened.get_tensor(_TENSOR)
        except (FileNotFoundError, SafetensorError):
            self.made += 1
            return None
        self.found += 1
        return tensor

    def has_room(self, needed: int) -> bool:
        """Whether so many bytes may still be kept."""
        kept = sum(file.stat().st_size for file in self.directory.glob("*" + _SUFFIX))
        return kept + needed <= self.max_bytes

    def save(self, name: str, tensor: Tensor) -> None:
        """Keep the tensor, if there is room. It appears whole or not at all.

        A disk that refuses it costs the others time, and is no reason for this run to end.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.has_room(tensor.nbytes):
            return
        handle, path = tempfile.mkstemp(prefix=".partial-", dir=self.directory)
        os.close(handle)
        partial = Path(path)
        try:
            _write(partial, tensor)
            os.replace(partial, self.directory / (name + _SUFFIX))
        except OSError:
            return
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class DenseStates:
    """The dense stream after each half layer."""

    files: SharedFiles
    key: str

    def restore(self, layer: int, half: Half, stream: Tensor) -> bool:
        """Move the stream past the half layer in place, if somebody has kept it there."""
        kept = self.files.load(self._name(layer, half))
        if kept is None or kept.shape != stream.shape or kept.dtype != stream.dtype:
            return False
        stream.copy_(kept)
        return True

    def keep(self, layer: int, half: Half, stream: Tensor) -> None:
        """Leave the stream, which is past the half layer, to other runs."""
        self.files.save(self._name(layer, half), stream)

    def _name(self, layer: int, half: Half) -> str:
        return f"dense-{self.key}-{layer}-{half}"


@dataclass(frozen=True, kw_only=True)
class SharedStatistics:
    """The shared files of one model on one kind of machine."""

    files: SharedFiles
    facts: Mapping[str, object]

    @classmethod
    def of(cls, files: SharedFiles, model: Path, **facts: object) -> SharedStatistics:
        """Whatever else the content depends on comes in as `facts`: device, dtype."""
        return cls(files=files, facts={"model": fingerprint(model), **facts})

    def tokens(self, calibration: CalibrationConfig, make: Callable[[], Tensor]) -> Tensor:
        """The calibration tokens: those that were kept, or new ones that then are."""
        name = "tokens-" + self._key(**calibration_facts(calibration))
        tokens = self.files.load(name)
        if tokens is None:
            tokens = make()
            self.files.save(name, tokens)
        return tokens

    def dense_states(self, **facts: object) -> DenseStates:
        """`facts` are those of the walk: tokens and how they are batched."""
        return DenseStates(files=self.files, key=self._key(**facts))

    def _key(self, **facts: object) -> str:
        return content_key(**self.facts, **facts)


def content_key(**facts: object) -> str:
    """A digest of all that some content depends on, and of the programs that make it."""
    versions = (intraslice_core.__version__, torch.__version__, transformers.__version__)
    told = json.dumps({"versions": versions, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def calibration_facts(calibration: CalibrationConfig) -> dict[str, object]:
    """What the tokens depend on, besides the model."""
    files = [Path(one.source) for one in calibration.mixture]
    texts = [_digest_file(file) if file.is_file() else None for file in files]
    return {"calibration": calibration.model_dump(mode="json"), "texts": texts}


def fingerprint(directory: Path) -> str:
    """SHA-256 over the content of everything that decides what the model computes."""
    files = {file for pattern in _MODEL_FILES for file in directory.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {_digest_file(file)}\n".encode())
    return digest.hexdigest()


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: Path, tensor: Tensor) -> None:
    """As a safetensors file, straight from memory: the library copies all of it first."""
    entry = {
        "dtype": _DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [0, tensor.nbytes],
    }
    header = json.dumps({_TENSOR: entry}).encode()
    header = header.ljust(len(header) + -len(header) % 8)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
