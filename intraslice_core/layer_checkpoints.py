"""What a run leaves behind layer by layer, so that another can go on where it was stopped.

A file for the calibration tokens, one for each finished layer, and now and then one for both
streams, or for a training after all layers. Every file names, as a digest, all that its content
depends on, and appears whole or not at all: a run finds what it would have made itself, bit for
bit, or nothing. Layers that are finished while the streams on disk are behind them are walked over
once, and not solved again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intraslice_core.checkpoints.shards import ShardFile
from intraslice_core.reports.schema import LayerReport

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
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.directory))
        try:
            file = ShardFile(folder / "tensors", metadata=facts)
            try:
                for tensor_name, tensor in tensors.items():
                    file.write(tensor_name, tensor.detach().to("cpu").contiguous())
                file.close()
            finally:
                file.abandon()
            os.replace(file.path, self.directory / (name + SUFFIX))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
