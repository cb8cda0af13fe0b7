"""Finished parts of the measurement of sensitivity in a run's resume state.

Gradients are written where they resume, a file for each layer, which the measurement needs in any
case. A layer's sensitivity and the trial cuts that begin there are saved once the layer is
measured. Hidden states share the file and the interval of those of the compression. Gradients and
hidden states are removed once all layers are measured, and the layers once the sensitivity is saved
as a whole. Scores of the Fisher allocator are saved as a whole, too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.allocation.context import AllocationContext
from intraslice_core.allocation.fisher import LayerScores
from intraslice_core.calibration import calibration_hash
from intraslice_core.plan import ModelGeometry
from intraslice_core.ranks import Ranks
from intraslice_core.resume_state import LOCAL_PREFIX, MEASURED_PREFIX, ResumeState
from intraslice_core.sensitivity.gradients import (
    GRADIENTS_NAME,
    GROUP_SEQUENCES,
    GradientFiles,
)
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measured_layers import MeasuredLayer
from intraslice_core.sensitivity.measurement import MEASUREMENT
from intraslice_core.sensitivity.trial_cuts import StartedTrial, TrialCut

_KEY_DIGITS = 16
"""Digits of the key in the names of files, so that files of one name have the same content."""
_TRIALS = "trials"
"""Metadata key of a layer's trial cuts, as JSON."""
_TRIAL = "trial."
"""Prefix of the names of the hidden states of a layer's trial cuts."""
_HEADS, _NEURONS = "heads.", "neurons."
"""Prefixes of the names of a layer's scores; its number follows."""
_CONTENT = "measured layers"


@dataclass(frozen=True, kw_only=True)
class SavedMeasurement:
    """Finished parts of one measurement (`measured_layers.MeasurementStore`)."""

    resume_state: ResumeState
    key: str
    """Digest of everything that the parts depend on: model, tokens, ranks, requested batch size.

    A size that was lowered for lack of memory is not part of it: a resumed run begins with the
    requested one, and parts before and after it differ by rounding.
    """
    geometry: ModelGeometry
    """Dimensions of the dense model."""
    on_unsaved: Callable[[str], None]
    """Called with the reason where a part could not be saved."""

    def finished(self) -> int:
        """Return the number of leading layers that are measured."""
        layer, layers = 0, self.geometry.num_hidden_layers
        while layer < layers and self.resume_state.has_part(self._name(layer), self.key):
            layer += 1
        return layer

    def layer(self, layer: int) -> MeasuredLayer:
        """Return a measured layer.

        Raises:
            RuntimeError: if its file is gone.
        """
        saved = self.resume_state.part(self._name(layer), self.key)
        if saved is None:
            raise RuntimeError(f"layer {layer} disappeared from the resume state during the run")
        tensors, facts = saved
        cuts = [TrialCut(**cut) for cut in json.loads(facts[_TRIALS])]
        started = tuple(
            StartedTrial(cut=cut, hidden=tensors.pop(f"{_TRIAL}{number}"))
            for number, cut in enumerate(cuts)
        )
        return MeasuredLayer(sensitivity=LayerSensitivity(**tensors), started=started)

    def save_layer(self, layer: int, measured: MeasuredLayer) -> None:
        """Save a measured layer, if the disk has room."""
        tensors = measured.sensitivity.tensors()
        for number, trial in enumerate(measured.started):
            tensors[f"{_TRIAL}{number}"] = trial.hidden
        facts = {_TRIALS: json.dumps([asdict(trial.cut) for trial in measured.started])}
        self._warn(
            self.resume_state.save_part_if_possible(
                self._name(layer), self.key, tensors, facts, _CONTENT
            )
        )

    def hidden_states(self, finished: int) -> tuple[dict[str, Tensor], int] | None:
        """Return saved hidden states by name, and the number of layers that they have passed."""
        return self.resume_state.hidden_states(self.key, finished)

    def save_hidden_states(
        self, hidden: Mapping[str, Tensor], layers: int, *, at_once: bool
    ) -> None:
        """Save hidden states that have passed `layers` layers, if it is due or `at_once` is set."""
        self._warn(self.resume_state.save_hidden_states(self.key, hidden, layers, at_once=at_once))

    def scores(self) -> list[LayerScores] | None:
        """Return the scores of all layers; None if they are not saved."""
        saved = self.resume_state.part(self._scores_name, self.key)
        if saved is None:
            return None
        arrays = {name: tensor.numpy() for name, tensor in saved[0].items()}
        return [
            LayerScores(heads=arrays[f"{_HEADS}{layer}"], neurons=arrays[f"{_NEURONS}{layer}"])
            for layer in range(self.geometry.num_hidden_layers)
        ]

    def save_scores(self, scores: Sequence[LayerScores]) -> None:
        """Save the scores of all layers, if the disk has room."""
        tensors = {}
        for layer, each in enumerate(scores):
            tensors[f"{_HEADS}{layer}"] = torch.from_numpy(each.heads)
            tensors[f"{_NEURONS}{layer}"] = torch.from_numpy(each.neurons)
        self._warn(
            self.resume_state.save_part_if_possible(
                self._scores_name, self.key, tensors, {}, "scores of layers"
            )
        )

    def remove_others(self) -> None:
        """Remove the measured layers of other settings."""
        self.resume_state.remove_parts(MEASURED_PREFIX, but=self._prefix)

    def remove(self) -> None:
        """Remove all parts of measurements, once the sensitivity is saved as a whole."""
        self.resume_state.remove_parts(MEASURED_PREFIX)
        self.remove_local()

    def remove_local(self) -> None:
        """Remove gradients and hidden states, once all layers are measured."""
        self.resume_state.remove_parts(f"{LOCAL_PREFIX}{GRADIENTS_NAME}")
        self.resume_state.remove_hidden_states(self.key)

    @property
    def _scores_name(self) -> str:
        return f"fisher-scores-{self.key[:_KEY_DIGITS]}"

    @property
    def _prefix(self) -> str:
        return f"{MEASURED_PREFIX}{self.key[:_KEY_DIGITS]}-"

    def _name(self, layer: int) -> str:
        return f"{self._prefix}{layer:05d}"

    def _warn(self, reason: str | None) -> None:
        if reason is not None:
            self.on_unsaved(reason)


def saved_measurement(
    context: AllocationContext, sequences: Sequence[Tensor], **parts: bool
) -> SavedMeasurement | None:
    """Return the place for the parts of a measurement.

    Args:
        context: inputs of the choice of shapes.
        sequences: all sequences that are measured on, (sequences, length) each, int64.
        parts: what is measured besides the gradients, by name.

    Returns:
        None without a resume state, which the main rank alone has.
    """
    state = context.resume_state
    if state is None:
        return None
    key = context.key(
        measured_layers=[calibration_hash(part) for part in sequences],
        prefix_length=context.prefix_length,
        measurement=MEASUREMENT,
        fields=[part.name for part in fields(LayerSensitivity)],
        batch_size=context.batch.requested,
        ranks=context.layers.ranks.count,
        parts=parts,
    )
    return SavedMeasurement(
        resume_state=state, key=key, geometry=context.geometry, on_unsaved=context.warn
    )


@contextmanager
def gradient_files(
    saved: SavedMeasurement | None, sequences: int, ranks: Ranks
) -> Iterator[GradientFiles]:
    """Yield the place of the gradients: the resume state, or a temporary directory if it is full.

    Files in the resume state stay if the block raises, and are removed after it otherwise, with the
    hidden states. Those of several ranks are temporary, as each has the files of its own layers.

    Args:
        saved: place of the measurement; None for a temporary directory.
        sequences: number of sequences whose gradients are computed.
        ranks: of the run.
    """
    if saved is not None and ranks.is_alone:
        directory = saved.resume_state.directory
        files = GradientFiles(directory=directory, prefix=LOCAL_PREFIX, key=saved.key)
        if _has_room(files, gradient_bytes(saved.geometry, sequences)):
            yield files
            saved.remove_local()
            return
        saved.on_unsaved(f"{directory} has no room for gradients: an interrupted run repeats them")
    with tempfile.TemporaryDirectory(prefix="intraslice-gradients-") as folder:
        yield GradientFiles(directory=Path(folder))
    if saved is not None:
        saved.remove_local()


def gradient_bytes(geometry: ModelGeometry, sequences: int) -> int:
    """Return the size of the gradients of all layers (`gradients.LayerGradients`).

    Args:
        geometry: of the dense model.
        sequences: number of sequences whose gradients are computed.
    """
    groups = -(-sequences // GROUP_SEQUENCES)
    heads = geometry.num_attention_heads * geometry.head_dim**2
    fisher = 2 * 8 * geometry.hidden_size**2
    masks = 4 * groups * (heads + geometry.intermediate_size)
    return geometry.num_hidden_layers * (fisher + masks + 4 * heads)


def _has_room(files: GradientFiles, needed: int) -> bool:
    """Report whether the disk has room for twice the gradients, with that of present files."""
    files.directory.mkdir(parents=True, exist_ok=True)
    present = sum(file.stat().st_size for file in files.files())
    return shutil.disk_usage(files.directory).free + present >= 2 * needed
