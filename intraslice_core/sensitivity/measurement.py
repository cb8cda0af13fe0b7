"""Sensitivity of all layers from one pass over the dense model (docs/method.md, sections 3 and 4).

Some calibration sequences pass the dense layers. For each layer the pass measures the removal order
of neurons and heads, the value directions, the joint effect of rotary pairs, and the predicted loss
of each by the Fisher matrices from `sensitivity.gradients`. The allocator's curves and, at any
ratio, the selections follow from these. On SmolLM2-135M at 30 %, selections on the dense hidden
states were no worse than new selections on the compressed hidden states.

The Fisher matrices treat errors and gradients as independent, which they are not: near the output
they underestimate the loss several times, in the middle layers they overestimate it. Therefore
modules of some layers are cut on trial and the loss of the cut model is measured on sequences of
the check set, which are used for nothing else here. Each module's curve is scaled by measured over
predicted loss, interpolated over depth. All trials pass the following layers in the same pass.

Every layer is saved once it is measured, with the hidden states of the trials that begin there. In
a resumed measurement the hidden states pass the finished layers by the same arithmetic without any
statistics, or are restored as they were saved meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device import return_free_memory
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.rotary_statistics import HeadEnergyAccumulator
from intraslice_core.selection import neurons, value_basis
from intraslice_core.selection.heads import HeadChoice, eliminate_heads, head_energies
from intraslice_core.selection.score_basis import ScoreDirections, score_directions
from intraslice_core.selection.value_dims import ValueDimChoice, eliminate_value_dims
from intraslice_core.sensitivity.cut_layers import CuttableLayer
from intraslice_core.sensitivity.dense_pass import DensePass, sequences_at_once
from intraslice_core.sensitivity.gradients import GradientFiles
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.layer_trials import layer_trials, trial_layers
from intraslice_core.sensitivity.measured_layers import MeasuredLayers, MeasurementStore
from intraslice_core.sensitivity.pair_effects import PairEffectAccumulator, PairInputs
from intraslice_core.sensitivity.predicted_losses import (
    losses_by_size,
    pair_losses,
    removal_loss,
    score_losses,
)
from intraslice_core.sensitivity.trial_cuts import TrialCut, TrialCuts, trial_cut_tokens
from intraslice_core.transfers import Batch, device_batches

NEURON_DAMPING = 1e-4
"""Relative damping of the Gram matrices in the elimination of neurons and heads."""
CHOICE_SHRINKAGE = 0.1
"""Shrinkage of `H` where neurons, heads and value directions are chosen.

This much of its diagonal is added. Correlations of the calibration text do not hold on other text;
by them, a neuron that others seem to replace costs nothing. The refit uses `H` itself.
"""
MEASUREMENT = (
    "8192 metric tokens, bounded sparse geometric kl-trials, normed pairs, balanced judge, "
    f"shrinkage {CHOICE_SHRINKAGE:g} with values"
)
"""Version of the measurement, a part of the key of cached sensitivities."""
METRIC_DAMPING = 1e-3
"""Relative damping of the Fisher matrices, which are estimated from a few sequences."""
TRIAL_DAMPING = 1e-3
"""Relative damping of the refit in trial cuts."""
PAIR_SEQUENCES = 8
"""Number of sequences used to measure the effect of rotary pairs."""
PAIR_QUERIES = 64
"""Maximum number of queries used of each of these sequences."""


@dataclass(frozen=True, kw_only=True)
class ModelSensitivity:
    """Measured sensitivity of all layers and the trial cuts."""

    layers: tuple[LayerSensitivity, ...]
    trials: tuple[TrialCut, ...]
    """Trial cuts; empty if none were measured."""

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer.tensors().values())


def measure_layers(  # noqa: PLR0913 (everything that one pass measures)
    layers: DenseLayers,
    tokens: Tensor,
    check: Tensor | None,
    gradients: GradientFiles | None,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
    prefix_length: int = 0,
    with_value_dims: bool = False,
    saved: MeasurementStore | None = None,
    on_resumed: Callable[[float], None] | None = None,
) -> ModelSensitivity:
    """Measure the sensitivity of all layers in one pass over the dense model.

    Args:
        layers: the dense model.
        tokens: sequences to measure on, (sequences, length), int64.
        check: sequences on which trial cuts are measured, (sequences, length), int64; None
            measures no trial cuts.
        gradients: of the loss; None weighs every module's output by 1/E‖x‖² of the hidden states.
        batch_size: sequences in one batch.
        before_batch: callback with the finished fraction; may raise to stop.
        prefix_length: positions of the prefix at the beginning of every sequence. Moments contain
            them scaled (`statistics.prefix_scale`), losses and energies do not.
        with_value_dims: also measure the removal order of value dimensions as they are.
        saved: layers that an interrupted run has finished and place for those of this one, on the
            main rank; None elsewhere, and where nothing is saved.
        on_resumed: called with the finished fraction of an interrupted run, if there is one.

    Raises:
        NumericalError: if an activation is not finite or a factorisation fails, naming the layer.
    """
    hidden = layers.memory.copy(layers.embed(tokens[layers.ranks.share(len(tokens))]).cpu())
    trials = None
    if check is not None:
        cut_tokens = trial_cut_tokens(check)
        trials = TrialCuts(layers, cut_tokens, batch_size=batch_size, prefix_length=prefix_length)
    passes = _Passes(
        layers=layers,
        hidden=hidden,
        gradients=gradients,
        batch_size=batch_size,
        before_batch=before_batch,
        prefix_length=prefix_length,
        with_value_dims=with_value_dims,
        trials=trials,
        measured=MeasuredLayers(layers, hidden, trials, saved),
    )
    sensitivities = passes.resumed(on_resumed)
    count = layers.ranks.count
    for first in range(len(sensitivities), layers.num_layers, count):
        group = range(first, min(first + count, layers.num_layers))
        sensitivities += passes.group(group)
        return_free_memory()
    measured = () if trials is None else trials.measured()
    return ModelSensitivity(layers=tuple(sensitivities), trials=measured)


@contextmanager
def _located(layer: int) -> Iterator[None]:
    """Add the layer to a `NumericalError` raised inside the context."""
    try:
        yield
    except NumericalError as error:
        # The error of another rank names a layer already.
        located = layer if error.layer is None else error.layer
        raise NumericalError(
            error.message, layer=located, module=error.module, hint=error.hint
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """Passes of the hidden states through the dense layers, and what is measured of them."""

    layers: DenseLayers
    hidden: Tensor
    """This rank's sequences, (sequences, length, hidden_size), advanced in place."""
    gradients: GradientFiles | None
    batch_size: int
    before_batch: Callable[[float], None]
    prefix_length: int
    with_value_dims: bool
    trials: TrialCuts | None
    measured: MeasuredLayers

    def resumed(self, on_resumed: Callable[[float], None] | None) -> list[LayerSensitivity]:
        """Pass all states through the layers that an interrupted run has finished.

        Args:
            on_resumed: called with their fraction of all layers, if there are any.
        """
        finished = self.measured.finished()
        if finished and on_resumed is not None:
            on_resumed(finished / self.layers.num_layers)
        passed = self.measured.restore_hidden_states(finished)
        sensitivities = []
        for layer in range(finished):
            measured = self.measured.layer(layer)
            sensitivities.append(measured.sensitivity.to(torch.device("cpu")))
            if layer < passed:
                continue
            layer_pass = self._layer_pass(layer)
            for batch in self._batches(layer, done=finished):
                batch.replace(layer_pass.replay(batch.values))
            if self.trials is not None:
                self.trials.pass_layer(layer, (), layer_pass.weights)
            self.measured.resume_trials(layer, measured.started)
            return_free_memory()
        return sensitivities

    def group(self, group: range) -> list[LayerSensitivity]:
        """Return the sensitivity of successive layers, at most one for each rank, on the CPU.

        All ranks pass all of these layers; then each factorises the moments of its own one.
        """
        ranks, trials = self.layers.ranks, self.trials
        own: _LayerPass | None = None
        for layer in group:
            with _located(layer):
                layer_pass = self._passed(layer)
            if ranks.owner(layer) == ranks.rank:
                own = layer_pass
            del layer_pass
        measured = None if own is None else self._measured(own)
        sensitivities = []
        for layer in group:
            sensitivity = ranks.computed(ranks.owner(layer), lambda: measured)
            assert sensitivity is not None  # the owner of every layer has measured it
            sensitivities.append(sensitivity.to(torch.device("cpu")))
            if trials is not None:
                with _located(layer):
                    if own is None or layer != own.layer:
                        trials.pass_layer(layer, ())
                    else:
                        cuts = own.trials(sensitivity) if own.has_trials else ()
                        trials.pass_layer(layer, cuts, own.weights)
            self.measured.save(layer, sensitivities[-1])
        self.measured.save_hidden_states(group.stop)
        return sensitivities

    def _passed(self, layer: int) -> _LayerPass:
        """Return the statistics of all ranks' sequences in a layer, on the rank that owns it."""
        layer_pass = self._layer_pass(layer)
        for batch in self._batches(layer):
            batch.replace(layer_pass.advance(batch.values))
        layer_pass.join(self.layers.ranks.owner(layer))
        return layer_pass

    def _layer_pass(self, layer: int) -> _LayerPass:
        return _LayerPass(self.layers, layer, self.hidden.shape[1], self.prefix_length)

    def _batches(self, layer: int, done: int | None = None) -> Iterator[Batch]:
        """Yield the batches of a layer, and report the finished layers before each of them.

        A run that is stopped before a layer's first batch saves the hidden states, which have
        passed all earlier layers then and no further one in part.

        Args:
            layer: number of the layer.
            done: finished layers; None if they are those before this one and a part of it.

        Raises:
            CompressionCancelledError: if the run is to stop.
        """
        hidden, device = self.hidden, self.layers.device
        at_once = sequences_at_once(self.batch_size, hidden.shape[1], device)
        for batch in device_batches(hidden, at_once, device):
            begin = batch.rows.start
            finished = layer + begin / len(hidden) if done is None else done
            try:
                self.before_batch(finished / self.layers.num_layers)
            except CompressionCancelledError:
                if begin == 0:
                    self.measured.save_hidden_states(layer, at_once=True)
                raise
            yield batch

    def _measured(self, layer_pass: _LayerPass) -> LayerSensitivity:
        """Return the sensitivity of a layer that this rank owns, on its device."""
        with _located(layer_pass.layer):
            fisher = None if self.gradients is None else self.gradients.read(layer_pass.layer)
            metrics = None if fisher is None else (fisher.attention, fisher.mlp)
            return layer_pass.sensitivity(metrics, self.with_value_dims)


class _LayerPass(DensePass):
    """Pass of the hidden states through one dense layer, with its accumulated statistics."""

    def __init__(self, layers: DenseLayers, layer: int, length: int, prefix_length: int) -> None:
        super().__init__(layers, layer, length, prefix_length)
        self.layer, settings = layer, self._settings
        self.has_trials = layer in trial_layers(layers.num_layers)
        self._hidden_energy = torch.zeros((), dtype=linalg.WORKING_DTYPE, device=self.device)
        self._tokens = 0
        self._energies = HeadEnergyAccumulator(
            num_attention_heads=settings.num_attention_heads,
            num_key_value_heads=settings.num_key_value_heads,
            pairs=settings.head_dim // 2,
            device=self.device,
            prefix_length=prefix_length,
            ranks=layers.ranks,
        )
        self._pair_inputs: list[PairInputs] = []
        """Queries, keys, values and scales of the first `PAIR_SEQUENCES` sequences."""
        self._pair_sequences = layers.ranks.share_size(PAIR_SEQUENCES)

    def advance(self, hidden: Tensor) -> Tensor:
        """Add one batch to the statistics and return the hidden states after the layer.

        Args:
            hidden: before the layer, (batch, sequence, hidden_size), on the layer's device.
        """
        text = hidden[:, self._prefix_length :]
        self._hidden_energy += text.float().square().sum()
        self._tokens += text.shape[0] * text.shape[1]
        return super().advance(hidden)

    def join(self, to: int | None = None) -> None:
        """Add up the statistics of all ranks; see `DensePass.join`."""
        super().join(to)
        self._energies.join()
        self._ranks.sum_([self._hidden_energy])
        self._tokens = int(self._ranks.totals([self._tokens])[0])
        inputs = self._ranks.gathered(lambda: self._pair_inputs)
        self._pair_inputs = [sequence for own in inputs for sequence in own]

    def _attend(self, normed: Tensor, *, records: bool) -> Tensor:
        """Return the attention's `o`; record energies, and inputs of the pairs' effects."""
        weights, settings = self.weights, self._settings
        projected = decoder_layer.queries_and_keys(normed, weights)
        query, key = decoder_layer.normed_and_rotated(*projected, weights, settings, self._rotary)
        value = decoder_layer.values(normed, weights)
        inner = decoder_layer.attend(query, key, value, settings)
        if not records:
            return inner
        self._energies.add(*projected)
        for row in range(min(len(inner), self._pair_sequences - len(self._pair_inputs))):
            scale = self._attention_space.contribution_scale(inner[row])
            inputs = PairInputs(query=query[row], key=key[row], value=value[row], scale=scale)
            self._pair_inputs.append(inputs)
        return inner

    def sensitivity(
        self, metrics: tuple[Tensor, Tensor] | None, with_value_dims: bool = False
    ) -> LayerSensitivity:
        """Return the layer's sensitivity, after all sequences have passed.

        Args:
            metrics: Fisher matrices of attention and MLP outputs, or None.
            with_value_dims: also measure the removal order of value dimensions as they are.

        Raises:
            NumericalError: if a moment is not finite or a factorisation fails.
        """
        attention, mlp = self._metrics(metrics)
        factors = fisher_factor(attention), fisher_factor(mlp)
        head_rows = linalg.product(self._attention_space.rows(), factors[0])
        neuron_rows = linalg.product(self._mlp_space.rows(), factors[1])
        moments = self.moments
        energies = self._energies.energies()
        effects = self._pair_effects(attention)
        moment, scores = effects.moment(), self._score_directions(effects)
        directions, spectrum = self._value_directions(head_rows)
        order, cost = self._eliminate_neurons(neuron_rows)
        heads, shares = self._eliminate_heads(head_rows)
        head_losses = 0.5 * heads.cost
        head_losses[0] = head_losses[:, 0] = removal_loss(moments.attention, head_rows)
        widths = losses_by_size(cost)
        # Because of a bias, removing the whole MLP may cost less than removing all neurons but
        # one, but curves never fall towards smaller sizes.
        widths[0] = max(float(widths[1]), removal_loss(moments.mlp, neuron_rows))
        dims = self._eliminate_value_dims(head_rows) if with_value_dims else None
        return LayerSensitivity(
            pair_moment=moment,
            query_energy=energies.query,
            key_energy=energies.key,
            value_directions=directions,
            value_spectrum=spectrum,
            neuron_order=order,
            pair_losses=pair_losses(moment) if scores is None else score_losses(scores),
            value_losses=losses_by_size(spectrum.sum(0).flip(-1)),
            width_losses=widths,
            group_order=heads.group_order,
            query_order=heads.query_order,
            head_losses=head_losses,
            head_shares=shares,
            query_directions=None if scores is None else scores.query,
            key_directions=None if scores is None else scores.key,
            value_order=None if dims is None else dims.order,
            value_costs=None if dims is None else 0.5 * dims.cost,
        )

    def _metrics(self, metrics: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return the Fisher matrices, or without them the identity over the mean energy."""
        if metrics is not None:
            return metrics[0].to(self.device), metrics[1].to(self.device)
        width = self.weights.attention_output.weight.shape[0]
        identity = torch.eye(width, dtype=linalg.WORKING_DTYPE, device=self.device)
        scaled = identity * (self._tokens / float(self._hidden_energy))
        return scaled, scaled

    def _eliminate_neurons(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return removal order and costs of all neurons, (intermediate_size,) each."""
        width = self.weights.up.weight.shape[0]
        factor = linalg.damped_cholesky(
            self.moments.mlp[:width, :width], NEURON_DAMPING, shrinkage=CHOICE_SHRINKAGE
        )
        choice = neurons.eliminate_neurons(factor, rows[:width], 0)
        return choice.removal_order, choice.removal_cost

    def _eliminate_value_dims(self, rows: Tensor) -> ValueDimChoice:
        """Return order and cost of the value dimensions as they are."""
        settings, width = self._settings, self._inner_width
        moment = linalg.shrunken(self.moments.attention[:width, :width], CHOICE_SHRINKAGE)
        factor = linalg.damped_cholesky(moment, NEURON_DAMPING)
        heads, groups = settings.num_attention_heads, settings.num_key_value_heads
        return eliminate_value_dims(factor, rows[:width], heads, groups)

    def _eliminate_heads(self, rows: Tensor) -> tuple[HeadChoice, Tensor]:
        """Return order and cost of heads, and the share of the output of every rectangle."""
        settings, width = self._settings, self._inner_width
        rows = rows[:width]
        moment = linalg.shrunken(self.moments.attention[:width, :width], CHOICE_SHRINKAGE)
        factor = linalg.damped_cholesky(moment, NEURON_DAMPING)
        choice = eliminate_heads(
            factor, rows, settings.num_attention_heads, settings.num_key_value_heads
        )
        return choice, choice.shares(head_energies(moment, rows, settings.num_attention_heads))

    @property
    def _inner_width(self) -> int:
        """Return the width of the attention's inner activations, without a bias."""
        return self._settings.num_attention_heads * self._settings.head_dim

    def _head_rows(self) -> Tensor:
        """Return the output projection by heads, (num_attention_heads, head_dim, hidden_size)."""
        settings = self._settings
        heads, head_dim = settings.num_attention_heads, settings.head_dim
        return self._attention_space.rows()[: heads * head_dim].view(heads, head_dim, -1)

    @property
    def has_free_basis(self) -> bool:
        """Return whether queries and keys may be in any basis: without RoPE and norms on them."""
        return not self._settings.rotates and self.weights.query_norm is None

    def _score_directions(self, effects: PairEffectAccumulator) -> ScoreDirections | None:
        """Return directions of queries and keys; None where only pairs may be selected."""
        return score_directions(*effects.score_moments()) if self.has_free_basis else None

    def _pair_effects(self, metric: Tensor) -> PairEffectAccumulator:
        """Return the effects of pairs and scores, weighed by each head's output metric."""
        rows, settings = self._head_rows(), self._settings
        head_metric = fisher_factor(linalg.product(rows, metric) @ rows.mT)
        effects = PairEffectAccumulator(
            num_key_value_heads=settings.num_key_value_heads,
            head_dim=settings.head_dim,
            settings=settings,
            device=self.device,
            with_score_moments=self.has_free_basis,
        )
        for inputs in self._pair_inputs:
            positions = _query_positions(self._prefix_length, inputs.query.shape[1], self.device)
            effects.add(inputs, head_metric, positions)
        return effects

    def _value_directions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return value directions and spectrum of the weighed output rows."""
        settings, width = self._settings, self._inner_width
        moment = value_basis.group_second_moment(
            self.moments.attention[:width, :width], settings.num_key_value_heads, settings.head_dim
        )
        moment = linalg.shrunken(moment, CHOICE_SHRINKAGE)
        return value_basis.weighted_directions(moment, rows[:width])

    def trials(self, sensitivity: LayerSensitivity) -> tuple[tuple[TrialCut, LayerWeights], ...]:
        """Return the trial cuts of the layer by its sensitivity, which is on its device."""
        layer = CuttableLayer(
            weights=self.weights,
            settings=self._settings,
            sensitivity=sensitivity,
            moments=self.moments,
            damping=TRIAL_DAMPING,
        )
        return layer_trials(layer)


def fisher_factor(metric: Tensor) -> Tensor:
    """Return `F` with `F Fᵀ = G + damping`, (…, n, n), float64; rows of `W F` are in loss units.

    Raises:
        NumericalError: if the matrix is not finite or the damping ladder ends.
    """
    return linalg.damped_cholesky(metric, METRIC_DAMPING).cholesky


def _query_positions(first: int, length: int, device: torch.device) -> Tensor:
    """Return at most `PAIR_QUERIES` query positions, evenly spaced from `first` to the end."""
    count = min(PAIR_QUERIES, length - first)
    return torch.linspace(first, length - 1, count, device=device).round().long()
