"""The resume state: files from which an interrupted run resumes.

They hold the calibration tokens, each measured and each compressed layer, and from time to time
the hidden states or the state of a training. Every file records a digest of everything that its
content depends on and appears whole or not at all. Hidden states, gradients, scores of the
evaluation and the time worked stay on their machine. All other files are copied to another machine;
each state of a training has a name of its own. A resumed run ends with the bytes of an undisturbed
one if all of its attempts round alike. If the saved hidden states lag behind the finished layers,
they pass through those layers once more; nothing is solved again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intraslice_core.calibration import ReadTokens
from intraslice_core.checkpoints.writer import ShardFile
from intraslice_core.files import atomic_file
from intraslice_core.reports.schema import LayerReport

_log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_TOKENS = "tokens"
_RECOVERY_TOKENS = "recovery-tokens"
_HIDDEN_STATES = "hidden-states"
LOCAL_PREFIX = "local-"
"""Prefix of the names of further files that stay on their machine."""
_WORK = f"{LOCAL_PREFIX}work"
MEASURED_PREFIX = "measured-"
"""Prefix of the names of files with the sensitivity of a layer, needed until all are measured."""
TRAINING_PREFIX = "training-"
"""Prefix of the names of files with the state of a training: its number of steps in eight digits
follows, so that the newest is the last by name."""
_KEPT_TRAINING_FILES = 2
"""Newest states of a training that are kept: the last one may be in the course of being copied."""
_PAIRS, _BASIS = "kept_pairs", "residual_basis"
_PARTS = "residual_parts."
"""Prefix of the names of a layer's indices into the residual stream."""
_WARNINGS = "warnings"


SavedListener = Callable[[str], None]


def ignore_saved(_name: str) -> None:
    """Do nothing about a saved file."""


@dataclass(frozen=True, kw_only=True)
class FinishedLayer:
    """A compressed layer as it will be saved, and its report."""

    tensors: Mapping[str, Tensor]
    """By their names in the checkpoint, in the dtype that it stores."""
    kept_pairs: Tensor
    """Rotary pairs, (num_key_value_heads, pairs), ascending."""
    report: LayerReport
    basis: Tensor | None = None
    """Basis of the layer's sliced output, (hidden_size, width), float32; None if it is dense."""
    residual_parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Dimensions of the residual stream that the modules read and write
    (`decoder_layer.residual_parts`)."""


@dataclass(kw_only=True)
class ResumeState:
    """The files from which an interrupted run of the same model and settings resumes.

    Args:
        directory: created by the first write.
        hidden_states_every_seconds: least time between two saves of the files that are rewritten:
            the hidden states and the state of a training.
        on_saved: called with the name of every file that may be copied once it is complete.
    """

    directory: Path
    hidden_states_every_seconds: float = 60.0
    on_saved: SavedListener = ignore_saved
    _hidden_states_saved: float = field(default_factory=time.monotonic, init=False)
    _recovery_saved: float = field(default_factory=time.monotonic, init=False)
    was_used: bool = field(default=False, init=False)
    """Whether a part of this run came from an earlier one."""

    def tokens(self, key: str, read: ReadTokens, warnings: list[str]) -> Tensor:
        """Return the saved calibration tokens, or read and save them.

        `warnings` is extended by those of the reading, which are saved with the tokens.
        """
        return self._saved_tokens(_TOKENS, key, read, warnings)

    def has_tokens(self, key: str) -> bool:
        """Report whether the calibration tokens of this run are saved."""
        return self._facts(_TOKENS, key) is not None

    def recovery_tokens(self, key: str, read: ReadTokens, warnings: list[str]) -> Tensor:
        """Return the saved training tokens, or read and save them; `warnings` as for `tokens`.

        Saved tokens are mapped from their file, so that they may be more than the memory holds.
        """
        return self._saved_tokens(_RECOVERY_TOKENS, key, read, warnings, mapped=True)

    def part(self, name: str, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return tensors and facts of a saved part of the run; None without it."""
        file = self._load(name, key)
        return None if file is None else (file.tensors, file.facts)

    def save_part(
        self, name: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]
    ) -> None:
        """Save tensors and facts of a finished part of the run."""
        self._save(name, tensors, {**facts, "key": key})
        self.on_saved(name + SUFFIX)

    def has_part(self, name: str, key: str) -> bool:
        """Report whether a part of this run is saved, without reading its tensors."""
        return self._facts(name, key) is not None

    def save_part_if_possible(
        self,
        name: str,
        key: str,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, str],
        content: str,
    ) -> str | None:
        """Save a part as `save_part` does, if the disk has room.

        Args:
            name: of the part.
            key: of the run.
            tensors: by name.
            facts: by name.
            content: description of the part, for the reason.

        Returns:
            The reason if it could not be saved. A resumed run then repeats the part.
        """
        reason = self._save_here(name, tensors, {**facts, "key": key}, content)
        if reason is None:
            self.on_saved(name + SUFFIX)
        return reason

    def remove_parts(self, prefix: str, *, but: str | None = None) -> None:
        """Remove the files of parts that are not needed any more.

        Args:
            prefix: begin of their names.
            but: prefix of the names of those that stay; None removes all.
        """
        for file in self.directory.glob(f"{prefix}*{SUFFIX}"):
            if but is None or not file.name.startswith(but):
                file.unlink(missing_ok=True)

    def layer(self, key: str, layer: int) -> FinishedLayer | None:
        """Return a layer if it is finished."""
        file = self._load(_layer_name(layer), key)
        if file is None:
            return None
        pairs, basis = file.tensors.pop(_PAIRS), file.tensors.pop(_BASIS, None)
        parts = {
            name.removeprefix(_PARTS): file.tensors.pop(name)
            for name in tuple(file.tensors)
            if name.startswith(_PARTS)
        }
        return FinishedLayer(
            tensors=file.tensors,
            kept_pairs=pairs,
            report=LayerReport.model_validate_json(file.facts["report"]),
            basis=basis,
            residual_parts=parts,
        )

    def has_layer(self, key: str, layer: int) -> bool:
        """Report whether a layer is finished, without reading its tensors."""
        return self._facts(_layer_name(layer), key) is not None

    def save_layer(self, key: str, finished: FinishedLayer) -> None:
        """Save a finished layer."""
        name = _layer_name(finished.report.layer)
        facts = {"key": key, "report": finished.report.model_dump_json()}
        pairs = finished.kept_pairs.to("cpu").contiguous()
        basis = {} if finished.basis is None else {_BASIS: finished.basis}
        parts = {_PARTS + name: index for name, index in finished.residual_parts.items()}
        self._save(name, {**finished.tensors, _PAIRS: pairs, **basis, **parts}, facts)
        self.on_saved(name + SUFFIX)

    def restore_hidden_states(self, key: str, hidden: Mapping[str, Tensor], finished: int) -> int:
        """Overwrite `hidden` with the saved hidden states if they are usable.

        Args:
            key: of the run.
            hidden: tensors by name, changed in place.
            finished: number of leading layers whose results are available.

        Returns:
            The number of layers that the hidden states have passed; 0 if none were usable.
        """
        saved = self.hidden_states(key, finished)
        if saved is None or not _same_layout(saved[0], hidden):
            return 0
        for name, tensor in hidden.items():
            tensor.copy_(saved[0][name])
        return saved[1]

    def hidden_states(self, key: str, finished: int) -> tuple[dict[str, Tensor], int] | None:
        """Return the saved hidden states by name, and the number of layers that they have passed.

        None if they are of another run or have passed more than the `finished` leading layers.
        """
        facts = self._facts(_HIDDEN_STATES, key)
        if facts is None or int(facts["layers"]) > finished:
            return None
        file = self._load(_HIDDEN_STATES, key)
        return None if file is None else (file.tensors, int(file.facts["layers"]))

    def remove_hidden_states(self, key: str) -> None:
        """Remove the saved hidden states, unless they are of another run."""
        if self._facts(_HIDDEN_STATES, key) is not None:
            (self.directory / (_HIDDEN_STATES + SUFFIX)).unlink(missing_ok=True)

    def save_hidden_states(
        self, key: str, hidden: Mapping[str, Tensor], layers: int, *, at_once: bool = False
    ) -> str | None:
        """Save hidden states that have passed `layers` layers, if it is due or `at_once` is set.

        Returns:
            The reason if they could not be saved. A resumed run then repeats more passes.
        """
        since = time.monotonic() - self._hidden_states_saved
        if not at_once and since < self.hidden_states_every_seconds:
            return None
        self._hidden_states_saved = time.monotonic()
        facts = {"key": key, "layers": str(layers)}
        return self._save_here(_HIDDEN_STATES, hidden, facts, "hidden states")

    def save_scores(
        self, name: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]
    ) -> str | None:
        """Save tensors and facts of a finished part of the evaluation, by a name for this machine.

        Returns:
            The reason if they could not be saved. A resumed run then repeats the part.
        """
        return self._save_here(name, tensors, {**facts, "key": key}, "scores")

    def worked_seconds(self, key: str) -> float:
        """Return the seconds that earlier attempts on this machine worked before they stopped."""
        facts = self._facts(_WORK, key)
        return 0.0 if facts is None else float(facts["seconds"])

    def save_worked_seconds(self, key: str, seconds: float) -> None:
        """Save the seconds that this attempt and earlier ones have worked, if the disk has room."""
        self._save_here(_WORK, {}, {"key": key, "seconds": repr(seconds)}, "duration")

    def _save_here(
        self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str], content: str
    ) -> str | None:
        """Save a file that no other machine needs; return the reason if it could not be saved."""
        needed = sum(tensor.nbytes for tensor in tensors.values())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.directory).free < 2 * needed:
                return f"{self.directory} has no room for {needed / 1e9:.2f} GB of {content}"
            self._save(name, tensors, facts)
        except OSError as error:
            return f"the {content} could not be saved: {error.strerror or error}"
        return None

    def recovery(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return the tensors and facts of the newest usable state of an interrupted training."""
        for file in reversed(self._training_files()):
            loaded = self._load(file.stem, key)
            if loaded is not None:
                return loaded.tensors, loaded.facts
        return None

    def save_recovery(
        self,
        key: str,
        step: int,
        tensors: Callable[[], Mapping[str, Tensor]],
        facts: Mapping[str, str],
        *,
        at_once: bool,
    ) -> str | None:
        """Save the state of a training, if the last save is long ago or `at_once` is set.

        Older states but one are removed.

        Returns:
            The reason if it could not be saved.
        """
        due = time.monotonic() - self._recovery_saved >= self.hidden_states_every_seconds
        if not at_once and not due:
            return None
        self._recovery_saved = time.monotonic()
        # Never a name twice: a repeated step has another duration, and copies do not change.
        name = f"{TRAINING_PREFIX}{step:08d}-{uuid.uuid4().hex[:8]}"
        earlier = self._training_files()
        try:
            self._save(name, tensors(), {**facts, "key": key})
        except OSError as error:
            return f"the state of the training could not be saved: {error.strerror or error}"
        # By age: an earlier training with other settings may have made more steps.
        for file in sorted(earlier, key=_age)[: -(_KEPT_TRAINING_FILES - 1)]:
            file.unlink(missing_ok=True)
        self.on_saved(name + SUFFIX)
        return None

    def _training_files(self) -> list[Path]:
        return sorted(self.directory.glob(f"{TRAINING_PREFIX}*{SUFFIX}"))

    def _saved_tokens(
        self, name: str, key: str, read: ReadTokens, warnings: list[str], *, mapped: bool = False
    ) -> Tensor:
        file = self._load(name, key, mapped=mapped)
        if file is not None:
            warnings += json.loads(file.facts.get(_WARNINGS, "[]"))
            return file.tensors[_TOKENS]
        new_warnings: list[str] = []
        tokens = read(new_warnings)
        self._save(name, {_TOKENS: tokens}, {"key": key, _WARNINGS: json.dumps(new_warnings)})
        self.on_saved(name + SUFFIX)
        warnings += new_warnings
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
        file = self.directory / (name + SUFFIX)
        try:
            with safe_open(file, framework="pt") as opened:
                facts: dict[str, str] = opened.metadata() or {}
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            _log.warning("%s is damaged and is not used: %s", file, error)
            return None
        return facts if facts.get("key") == key else None

    def _load(self, name: str, key: str, *, mapped: bool = False) -> _StateFile | None:
        """Return None if the file is missing, damaged or of another run."""
        facts = self._facts(name, key)
        if facts is None:
            return None
        self.was_used = True
        with safe_open(self.directory / (name + SUFFIX), framework="pt", device="cpu") as opened:
            tensors = {entry: opened.get_tensor(entry) for entry in opened.offset_keys()}
        if not mapped:
            # Copied: mapped tensors lie at any address, and products of operands with another
            # alignment may round differently.
            tensors = {entry: tensor.clone() for entry, tensor in tensors.items()}
        return _StateFile(facts=facts, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class _StateFile:
    facts: dict[str, str]
    tensors: dict[str, Tensor]


def _age(file: Path) -> float:
    """Return the time of the last change; 0 if the file is gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _layer_name(layer: int) -> str:
    return f"layer-{layer:05d}"


def _same_layout(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    def layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    return layout(saved) == layout(wanted)
