"""Trial cuts (docs/method.md, section 4): cut one module of one layer and measure the loss.

The loss is the divergence from the dense model. On a few sequences the increase of the next-token
loss is mostly noise: a cut that costs 0.01 nats measures between -0.02 and 0.04. The divergence at
a few hundred positions is known within a tenth, so it is measured at no more of them: the output
head costs as much as many layers. Sequences differ more than positions do: on SmolLM2-135M, code
that the model wrote itself had ten times the divergence of the calibration's prose. So a cut's
measurement is the geometric mean over the sequences, which no single one decides. The scales that
follow from it are bounded and smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers, divergences
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.plan import Module
from intraslice_core.sensitivity.dense_pass import sequences_at_once
from intraslice_core.transfers import device_batches

TRIAL_CUT_TOKENS = 2048
"""Tokens of the check set that trial cuts pass, at most."""
TRIAL_CUT_SEQUENCES = 4
"""Sequences of which these tokens are the beginnings, at most."""
TRIAL_CUT_POSITIONS = 512
"""Evenly spaced positions of these tokens at which the divergence is measured, about."""


def trial_cut_tokens(check: Tensor) -> Tensor:
    """Return the beginnings of check sequences that trial cuts pass, (sequences, length), int64."""
    sequences = check[:TRIAL_CUT_SEQUENCES]
    return sequences[:, : TRIAL_CUT_TOKENS // len(sequences)]


def geometric_mean(values: Tensor) -> float:
    """Return the geometric mean of numbers of at least 0, (n,); 0 if one of them is 0."""
    return float(values.double().log().mean().exp())


@dataclass(frozen=True, kw_only=True)
class TrialCut:
    """Predicted loss increase and measured divergence of a cut, in nats per token."""

    layer: int
    module: Module
    cut: float
    """Fraction of the module's dimensions that is removed."""
    predicted: float
    measured: float
    """Geometric mean over sequences of their mean divergence."""


@dataclass(frozen=True, kw_only=True)
class StartedTrial:
    """Trial cut that has passed the layer that it cuts."""

    cut: TrialCut
    hidden: Tensor
    """Hidden states after that layer, (sequences, length, hidden_size)."""


class TrialCuts:
    """Hidden states of models that are dense except for one cut module, advanced layer by layer.

    All models pass a layer together. Each rank has the trials of the layers that it owns.
    """

    def __init__(
        self, layers: DenseLayers, tokens: Tensor, *, batch_size: int, prefix_length: int = 0
    ) -> None:
        self._layers = layers
        self._prefix_length = prefix_length
        self._batch_size = batch_size
        self._states = [layers.memory.copy(layers.embed(tokens).cpu())]
        """Hidden states of the dense model, then of every trial, (sequences, length, hidden_size).

        They are advanced in place.
        """
        self._trials: list[TrialCut] = []

    def pass_layer(
        self,
        layer: int,
        cuts: Sequence[tuple[TrialCut, LayerWeights]],
        dense: LayerWeights | None = None,
    ) -> None:
        """Advance all hidden states past a dense layer and start a new trial for each of its cuts.

        Args:
            layer: number of the layer.
            cuts: trials with the layer's cut weights; their `layer` is filled in here.
            dense: weights of the dense layer; None reads them.
        """
        started = [self._layers.memory.copy(self._states[0]) for _ in cuts]
        for hidden, (_, cut) in zip(started, cuts, strict=True):
            self._advance(layer, hidden, cut)
        dense = dense or self._layers.weights(layer)
        for hidden in self._states:
            self._advance(layer, hidden, dense)
        self._states += started
        self._trials += [replace(trial, layer=layer) for trial, _ in cuts]

    def started(self, layer: int) -> tuple[StartedTrial, ...]:
        """Return this rank's trials of the layer that was passed last."""
        return tuple(
            StartedTrial(cut=cut, hidden=hidden)
            for cut, hidden in zip(self._trials, self._states[1:], strict=True)
            if cut.layer == layer
        )

    def resume(self, started: Sequence[StartedTrial]) -> None:
        """Add this rank's trials of the layer that was passed last, of an interrupted run."""
        self._states += [self._layers.memory.copy(trial.hidden) for trial in started]
        self._trials += [trial.cut for trial in started]

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Return the hidden states of the dense model, then of every trial."""
        return tuple(self._states)

    def restore(self, states: Sequence[Tensor], cuts: Sequence[TrialCut]) -> bool:
        """Replace everything by the states of an interrupted run; return False if they do not fit.

        Args:
            states: of the dense model, then of every trial, past the same layers.
            cuts: the trials.
        """
        layout = self._states[0].shape, self._states[0].dtype
        if len(states) != 1 + len(cuts) or any((s.shape, s.dtype) != layout for s in states):
            return False
        self._states = [self._layers.memory.copy(hidden) for hidden in states]
        self._trials = list(cuts)
        return True

    def measured(self) -> tuple[TrialCut, ...]:
        """Return all trials with their measured losses, after the last layer was passed."""
        trials = [trial for own in self._layers.ranks.gathered(self._measured) for trial in own]
        return tuple(sorted(trials, key=lambda trial: trial.layer))

    def _measured(self) -> tuple[TrialCut, ...]:
        """Return the trials of this rank with their measured losses."""
        if not self._trials:
            return ()
        tokens = self._states[0][..., 0].numel()
        losses = divergences(
            self._layers,
            self._states[0],
            self._states[1:],
            prefix_length=self._prefix_length,
            stride=-(-tokens // TRIAL_CUT_POSITIONS),
        )
        return tuple(
            replace(trial, measured=geometric_mean(loss.mean(1)))
            for trial, loss in zip(self._trials, losses, strict=True)
        )

    def _advance(self, layer: int, hidden: Tensor, weights: LayerWeights) -> None:
        """Overwrite hidden states, (sequences, length, hidden_size), by those after the layer."""
        settings, device = self._layers.settings(layer), weights.up.weight.device
        rotary = self._layers.rotary(layer, hidden.shape[1])
        at_once = sequences_at_once(self._batch_size, hidden.shape[1], device)
        for batch in device_batches(hidden, at_once, device):
            batch.replace(decoder_layer.forward(batch.values, weights, settings, rotary))
