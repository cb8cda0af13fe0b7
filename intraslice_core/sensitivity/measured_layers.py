"""Finished parts of a measurement of sensitivity, from which an interrupted one resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.ranks import MAIN
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.layer_trials import trial_layers
from intraslice_core.sensitivity.trial_cuts import StartedTrial, TrialCuts

_HIDDEN, _TRIALS = "hidden", "trials."
"""Names of saved hidden states; the number of a state of the trial cuts follows."""


@dataclass(frozen=True, kw_only=True)
class MeasuredLayer:
    """Sensitivity of a layer, and the trial cuts that begin there."""

    sensitivity: LayerSensitivity
    """On the CPU."""
    started: tuple[StartedTrial, ...] = ()


class MeasurementStore(Protocol):
    """Finished layers of a measurement, and hidden states that have passed some of them."""

    def finished(self) -> int:
        """Return the number of leading layers that are measured."""

    def layer(self, layer: int) -> MeasuredLayer:
        """Return a measured layer.

        Raises:
            RuntimeError: if it is not there.
        """

    def save_layer(self, layer: int, measured: MeasuredLayer) -> None:
        """Save a measured layer, if that is possible."""

    def hidden_states(self, finished: int) -> tuple[dict[str, Tensor], int] | None:
        """Return saved hidden states by name, and the number of layers that they have passed.

        Args:
            finished: number of layers that they may have passed at most.
        """

    def save_hidden_states(
        self, hidden: Mapping[str, Tensor], layers: int, *, at_once: bool
    ) -> None:
        """Save hidden states that have passed `layers` layers, if it is due or `at_once` is set."""


class MeasuredLayers:
    """Finished layers of a measurement as all ranks see them: the main rank reads and writes them.

    Args:
        layers: the dense model.
        hidden: this rank's hidden states, (sequences, length, hidden_size), restored in place.
        trials: trial cuts, restored likewise; None without any.
        store: place of the layers, on the main rank; None elsewhere, and where nothing is saved.
    """

    def __init__(
        self,
        layers: DenseLayers,
        hidden: Tensor,
        trials: TrialCuts | None,
        store: MeasurementStore | None,
    ) -> None:
        self._layers, self._ranks = layers, layers.ranks
        self._hidden, self._trials = hidden, trials
        self._store = store
        self._is_saved = self._ranks.computed(MAIN, lambda: store is not None)

    def finished(self) -> int:
        """Return the number of leading layers that an interrupted run has measured."""
        store = self._store
        if not self._is_saved:
            return 0
        return self._ranks.computed(MAIN, lambda: 0 if store is None else store.finished())

    def layer(self, layer: int) -> MeasuredLayer:
        """Return a finished layer.

        Raises:
            RuntimeError: if it is not there.
        """
        return self._ranks.computed(MAIN, partial(self._own_layer, layer))

    def restore_hidden_states(self, finished: int) -> int:
        """Return how many of the finished layers the restored hidden states have passed.

        Those of several ranks are not saved: they pass the finished layers again.
        """
        if self._store is None or not self._ranks.is_alone:
            return 0
        states = self._store.hidden_states(finished)
        if states is None:
            return 0
        tensors, passed = states
        saved = tensors.pop(_HIDDEN, None)
        if saved is None or (saved.shape, saved.dtype) != (self._hidden.shape, self._hidden.dtype):
            return 0
        if self._trials is not None:
            layers = map(self._own_layer, range(passed))
            cuts = [trial.cut for layer in layers for trial in layer.started]
            if not self._trials.restore([tensors[name] for name in sorted(tensors)], cuts):
                return 0
        self._hidden.copy_(saved)
        return passed

    def resume_trials(self, layer: int, started: tuple[StartedTrial, ...]) -> None:
        """Add the trial cuts of a layer that all hidden states have just passed again."""
        if self._trials is not None and self._ranks.owner(layer) == self._ranks.rank:
            self._trials.resume(started)

    def save(self, layer: int, sensitivity: LayerSensitivity) -> None:
        """Save a layer's sensitivity and the trial cuts that have just begun there."""
        if not self._is_saved:
            return
        started: tuple[StartedTrial, ...] = ()
        if self._trials is not None and layer in trial_layers(self._layers.num_layers):
            owner = self._ranks.owner(layer)
            started = self._ranks.computed(owner, partial(self._trials.started, layer))
        if self._store is not None:
            measured = MeasuredLayer(sensitivity=sensitivity, started=started)
            self._store.save_layer(layer, measured)

    def save_hidden_states(self, layers: int, *, at_once: bool = False) -> None:
        """Save the hidden states that have passed so many layers; not those of several ranks."""
        if self._store is None or layers == 0 or not self._ranks.is_alone:
            return
        states = () if self._trials is None else self._trials.states
        trials = {f"{_TRIALS}{number:03d}": state for number, state in enumerate(states)}
        self._store.save_hidden_states({_HIDDEN: self._hidden, **trials}, layers, at_once=at_once)

    def _own_layer(self, layer: int) -> MeasuredLayer:
        assert self._store is not None  # the main rank, on which layers are saved
        return self._store.layer(layer)
