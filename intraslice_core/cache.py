"""What a run leaves behind layer by layer, so that another can go on where it was stopped.

A file for the calibration tokens, one for each finished layer, and now and then one for both
streams, or for a training after all layers. Every file names, as a digest, all that its content
depends on, and appears whole or not at all: a run finds what it would have made itself, bit for
bit, or nothing. Layers that are finished while the streams on disk are behind them are walked over
once, and not solved again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor

import intraslice_core
from intraslice_core.checkpoints.writer import ShardFile
from intraslice_core.config import CalibrationConfig
from intraslice_core.device import DTYPE_NAMES
from intraslice_core.files import atomic_file, combined_sha256, file_sha256
from intraslice_core.plan import Module
from intraslice_core.reports.schema import LayerReport

_SUFFIX = ".safetensors"
_TENSOR = "shared"
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "token*", "*.model")


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
        with suppress(OSError), atomic_file(self.directory / (name + _SUFFIX)) as partial:
            _write(partial, tensor)


@dataclass(frozen=True, kw_only=True)
class DenseStates:
    """The dense stream after each half layer."""

    files: SharedFiles
    key: str

    def restore(self, layer: int, half: Module, stream: Tensor) -> bool:
        """Move the stream past the half layer in place, if somebody has kept it there."""
        kept = self.files.load(self._name(layer, half))
        if kept is None or kept.shape != stream.shape or kept.dtype != stream.dtype:
            return False
        stream.copy_(kept)
        return True

    def keep(self, layer: int, half: Module, stream: Tensor) -> None:
        """Leave the stream, which is past the half layer, to other runs."""
        self.files.save(self._name(layer, half), stream)

    def _name(self, layer: int, half: Module) -> str:
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
    texts = [file_sha256(file) if file.is_file() else None for file in files]
    return {"calibration": calibration.model_dump(mode="json"), "texts": texts}


def fingerprint(directory: Path) -> str:
    """SHA-256 over the content of everything that decides what the model computes."""
    files = {file for pattern in _MODEL_FILES for file in directory.glob(pattern)}
    return combined_sha256(files)


def _write(file: Path, tensor: Tensor) -> None:
    """As a safetensors file, straight from memory: the library copies all of it first."""
    entry = {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [0, tensor.nbytes],
    }
    header = json.dumps({_TENSOR: entry}).encode()
    header = header.ljust(len(header) + -len(header) % 8)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


SUFFIX = ".safetensors"
_TOKENS = "tokens"
_RECOVERY_TOKENS = "recovery-tokens"
_STREAMS = "streams"
_RECOVERY = "recovery"
_PAIRS = "kept_pairs"


def tell_nobody(_name: str) -> None:
    """Nobody wants to hear of it."""


@dataclass(frozen=True, kw_only=True)
class FinishedLayer:
    """A layer as it will be saved, and what is told of it."""

    tensors: Mapping[str, Tensor]
    """By the names the checkpoint gives them, in the dtype it stores."""
    kept_pairs: Tensor
    """(num_key_value_heads, pairs), ascending."""
    report: LayerReport


@dataclass(kw_only=True)
class LayerCheckpoints:
    """Where one run keeps its files; the next of the same model and settings finds them.

    Args:
        directory: made when it is first written to.
        streams_every_seconds: between two files of the streams, or of a training: those that are
            written again and again.
        on_saved: hears the name of every file but those.
    """

    directory: Path
    streams_every_seconds: float = 60.0
    on_saved: Callable[[str], None] = tell_nobody
    _streams_saved: float = field(default_factory=time.monotonic, init=False)
    _recovery_saved: float = field(default_factory=time.monotonic, init=False)

    def tokens(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The calibration tokens: those that were kept, or new ones that then are."""
        return self._made_once(_TOKENS, key, make)

    def recovery_tokens(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The same of what is trained on."""
        return self._made_once(_RECOVERY_TOKENS, key, make)

    def layer(self, key: str, layer: int) -> FinishedLayer | None:
        """The layer if it is finished."""
        kept = self._load(_layer_name(layer), key)
        if kept is None:
            return None
        pairs = kept.tensors.pop(_PAIRS)
        report = LayerReport.model_validate_json(kept.facts["report"])
        return FinishedLayer(tensors=kept.tensors, kept_pairs=pairs, report=report)

    def has_layer(self, key: str, layer: int) -> bool:
        """Whether the layer is finished, without reading it."""
        return self._facts(_layer_name(layer), key) is not None

    def save_layer(self, key: str, finished: FinishedLayer) -> None:
        """Keep a finished layer."""
        name = _layer_name(finished.report.layer)
        facts = {"key": key, "report": finished.report.model_dump_json()}
        pairs = finished.kept_pairs.to("cpu").contiguous()
        self._save(name, {**finished.tensors, _PAIRS: pairs}, facts)
        self.on_saved(name + SUFFIX)

    def restore_streams(self, key: str, streams: Mapping[str, Tensor], finished: int) -> int:
        """Move the streams, in place, past as many of the `finished` first layers as is known.

        Returns:
            The number of layers they are past: 0 if nothing of use was kept.
        """
        facts = self._facts(_STREAMS, key)
        if facts is None or int(facts["layers"]) > finished:
            return 0
        kept = self._load(_STREAMS, key)
        if kept is None or not _alike(kept.tensors, streams):
            return 0
        for name, stream in streams.items():
            stream.copy_(kept.tensors[name])
        return int(kept.facts["layers"])

    def save_streams_now_and_then(
        self, key: str, streams: Mapping[str, Tensor], layers: int
    ) -> str | None:
        """Keep streams that are past `layers` layers, if the last time is long ago.

        Returns:
            Why it was not possible, if it was not: the next run then walks further, and no more.
        """
        if time.monotonic() - self._streams_saved < self.streams_every_seconds:
            return None
        self._streams_saved = time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        needed = sum(stream.nbytes for stream in streams.values())
        if shutil.disk_usage(self.directory).free < 2 * needed:
            return f"{self.directory} has no room for the streams' {needed / 1e9:.2f} GB"
        try:
            self._save(_STREAMS, streams, {"key": key, "layers": str(layers)})
        except OSError as error:
            return f"the streams could not be kept: {error.strerror or error}"
        return None

    def recovery(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What a training has kept: tensors, and facts about them."""
        kept = self._load(_RECOVERY, key)
        return None if kept is None else (kept.tensors, kept.facts)

    def save_recovery(
        self,
        key: str,
        tensors: Callable[[], Mapping[str, Tensor]],
        facts: Mapping[str, str],
        *,
        at_once: bool,
    ) -> str | None:
        """Keep where a training is, if the last time is long ago or it is to be at once.

        Returns:
            Why it was not possible, if it was not.
        """
        if not at_once and time.monotonic() - self._recovery_saved < self.streams_every_seconds:
            return None
        self._recovery_saved = time.monotonic()
        try:
            self._save(_RECOVERY, tensors(), {**facts, "key": key})
        except OSError as error:
            return f"the training could not be kept: {error.strerror or error}"
        return None

    def _made_once(self, name: str, key: str, make: Callable[[], Tensor]) -> Tensor:
        kept = self._load(name, key)
        if kept is not None:
            return kept.tensors[_TOKENS]
        tokens = make()
        self._save(name, {_TOKENS: tokens}, {"key": key})
        self.on_saved(name + SUFFIX)
        return tokens

    def _save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        with atomic_file(self.directory / (name + SUFFIX)) as partial:
            file = ShardFile(partial, metadata=facts)
            try:
                for tensor_name, tensor in tensors.items():
                    file.write(tensor_name, tensor.detach().to("cpu").contiguous())
                file.close()
            finally:
                file.abandon()

    def _facts(self, name: str, key: str) -> dict[str, str] | None:
        try:
            with safe_open(self.directory / (name + SUFFIX), framework="pt") as opened:
                facts: dict[str, str] = opened.metadata() or {}
        except (FileNotFoundError, SafetensorError):
            return None
        return facts if facts.get("key") == key else None

    def _load(self, name: str, key: str) -> _Kept | None:
        """None if there is no such file, it is damaged, or it is of another run."""
        facts = self._facts(name, key)
        if facts is None:
            return None
        with safe_open(self.directory / (name + SUFFIX), framework="pt", device="cpu") as opened:
            # Copied, because a file's tensors lie at any address, and products of operands that
            # are aligned otherwise may round otherwise.
            tensors = {each: opened.get_tensor(each).clone() for each in opened.offset_keys()}
        return _Kept(facts=facts, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    facts: dict[str, str]
    tensors: dict[str, Tensor]


def _layer_name(layer: int) -> str:
    return f"layer-{layer:05d}"


def _alike(kept: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    return shapes(kept) == shapes(wanted)
