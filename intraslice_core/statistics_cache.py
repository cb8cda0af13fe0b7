"""The statistics cache: tensors that runs of one model at different ratios have in common.

Every file is named by a digest of everything that its content depends on and appears whole or not
at all. A run therefore finds what it would have computed itself, or nothing: bit for bit on a CPU
with as many threads and factorisations alike (in place or with copies), else within the rounding of
its kernels (docs/method.md, section 2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intraslice_core.calibration import ReadTokens
from intraslice_core.content_key import content_key, fingerprint
from intraslice_core.device import DTYPE_NAMES
from intraslice_core.files import atomic_file
from intraslice_core.plan import Module

SUFFIX = ".safetensors"
_TENSOR = "shared"
_WARNINGS = "warnings"
"""Note with the warnings about the text of saved tokens, as a JSON list."""
_NO_NOTES: Mapping[str, str] = MappingProxyType({})


@dataclass(kw_only=True)
class StatisticsCache:
    """Tensors by name in a directory that several runs may use at the same time.

    Tensors that do not fit into `max_bytes` are not saved; that costs time and nothing else.
    """

    directory: Path
    max_bytes: int
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)

    def load(self, name: str) -> Tensor | None:
        """Return the memory-mapped tensor; None if it is missing or damaged."""
        file = self.directory / (name + SUFFIX)
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensor: Tensor = opened.get_tensor(_TENSOR)
        except (FileNotFoundError, SafetensorError):
            self.misses += 1
            return None
        self.hits += 1
        return tensor

    def notes(self, name: str) -> dict[str, str]:
        """Return the notes that were saved with a tensor; empty if there are none."""
        file = self.directory / (name + SUFFIX)
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                return opened.metadata() or {}
        except (FileNotFoundError, SafetensorError):
            return {}

    def has(self, name: str) -> bool:
        """Report whether a tensor is saved, without reading it."""
        return (self.directory / (name + SUFFIX)).is_file()

    def has_room(self, needed: int) -> bool:
        """Report whether this many more bytes may be saved."""
        used = sum(file.stat().st_size for file in self.directory.glob("*" + SUFFIX))
        return used + needed <= self.max_bytes

    def save(self, name: str, tensor: Tensor, notes: Mapping[str, str] = _NO_NOTES) -> None:
        """Save the tensor if there is room.

        A disk error costs other runs time and is no reason for this run to fail.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.has_room(tensor.nbytes):
            return
        with suppress(OSError), atomic_file(self.directory / (name + SUFFIX)) as partial:
            _write(partial, tensor, notes)


@dataclass(frozen=True, kw_only=True)
class DenseStates:
    """The dense hidden states after each module of each layer."""

    cache: StatisticsCache
    key: str

    def restore(self, layer: int, module: Module, hidden: Tensor) -> bool:
        """Overwrite `hidden` with the saved states after the module; False if there are none."""
        saved = self.cache.load(self._name(layer, module))
        if saved is None or saved.shape != hidden.shape or saved.dtype != hidden.dtype:
            return False
        hidden.copy_(saved)
        return True

    def keep(self, layer: int, module: Module, hidden: Tensor) -> None:
        """Save the hidden states after the module for other runs."""
        self.cache.save(self._name(layer, module), hidden)

    def _name(self, layer: int, module: Module) -> str:
        return f"dense-{self.key}-{layer}-{module}"


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """The part of the statistics cache that belongs to one model on one class of machine."""

    cache: StatisticsCache
    facts: Mapping[str, object]

    @classmethod
    def of(cls, cache: StatisticsCache, model: Path, **facts: object) -> ModelStatistics:
        """Return the part of a model; `facts` are device, dtype and whatever else matters."""
        return cls(cache=cache, facts={"model": fingerprint(model), **facts})

    def tokens(self, facts: Mapping[str, object], read: ReadTokens, warnings: list[str]) -> Tensor:
        """Return the saved calibration tokens with these facts, or read and save them.

        `warnings` is extended by those of the reading, which are saved with the tokens.
        """
        name = "tokens-" + self._key(**facts)
        tokens = self.cache.load(name)
        if tokens is None:
            new_warnings: list[str] = []
            tokens = read(new_warnings)
            self.cache.save(name, tokens, {_WARNINGS: json.dumps(new_warnings)})
        else:
            new_warnings = json.loads(self.cache.notes(name).get(_WARNINGS, "[]"))
        warnings += new_warnings
        return tokens

    def has_tokens(self, facts: Mapping[str, object]) -> bool:
        """Report whether the calibration tokens with these facts are saved."""
        return self.cache.has("tokens-" + self._key(**facts))

    def dense_states(self, **facts: object) -> DenseStates:
        """Return the dense hidden states of one pass; `facts` are its tokens and batching."""
        return DenseStates(cache=self.cache, key=self._key(**facts))

    def _key(self, **facts: object) -> str:
        return content_key(**self.facts, **facts)


def _write(file: Path, tensor: Tensor, notes: Mapping[str, str]) -> None:
    """Write a safetensors file straight from memory; the library would copy all of it first."""
    entry = {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [0, tensor.nbytes],
    }
    described = {"__metadata__": dict(notes)} if notes else {}
    header = json.dumps(described | {_TENSOR: entry}).encode()
    header = header.ljust(len(header) + -len(header) % 8)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
