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
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intraslice_core import decoder_layer, linalg, slicing
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.compensation import OutputSpace, attention_space, mlp_space
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.plan import Module
from intraslice_core.selection import neurons, value_basis
from intraslice_core.selection.heads import HeadChoice, eliminate_heads, head_energies
from intraslice_core.selection.rotary_pairs import eliminate_pairs
from intraslice_core.selection.score_basis import ScoreDirections, score_directions
from intraslice_core.sensitivity.gradients import GradientFiles
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.pair_effects import PairEffectAccumulator
from intraslice_core.sensitivity.trial_cuts import TrialCut, TrialCuts
from intraslice_core.statistics import (
    HeadEnergyAccumulator,
    prefix_scale,
    scaled,
    second_moment_sum,
)

NEURON_DAMPING = 1e-4
"""Relative damping of the Gram matrices in the elimination of neurons and heads."""
CHOICE_SHRINKAGE = 0.1
"""Shrinkage of `H` where neurons and heads are eliminated: `H` plus this much of its diagonal.

Correlations of the calibration text do not hold on other text; by them, a neuron that others
seem to replace costs nothing. The refit uses `H` itself.
"""
MEASUREMENT = f"kl-trials, shrinkage {CHOICE_SHRINKAGE:g}"
"""Version of the measurement, a part of the key of cached sensitivities."""
METRIC_DAMPING = 1e-3
"""Relative damping of the Fisher matrices, which are estimated from a few sequences."""
TRIAL_DAMPING = 1e-3
"""Relative damping of the refit in trial cuts."""
TRIAL_CUTS = (0.25, 0.5)
"""Fractions of a module's dimensions that trial cuts remove."""
SPOT_DISTANCE = 5
"""Distance between layers with trial cuts; the last layer has them, too."""
PAIR_SEQUENCES = 8
"""Number of sequences used to measure the effect of rotary pairs."""
PAIR_QUERIES = 128
"""Maximum number of queries used of each of these sequences."""


@dataclass(frozen=True, kw_only=True)
class ModelSensitivity:
    """Measured sensitivity of all layers and the trial cuts."""

    layers: tuple[LayerSensitivity, ...]
    trials: tuple[TrialCut, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer.tensors().values())


def measure_layers(
    layers: DenseLayers,
    tokens: Tensor,
    check: Tensor,
    gradients: GradientFiles | None,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
    prefix_length: int = 0,
) -> ModelSensitivity:
    """Measure the sensitivity of all layers in one pass over the dense model.

    Args:
        layers: the dense model.
        tokens: sequences to measure on, (sequences, length), int64.
        check: sequences on which trial cuts are measured, (sequences, length), int64.
        gradients: of the loss; None weighs every module's output by 1/E‖x‖² of the hidden states.
        batch_size: sequences in one batch.
        before_batch: callback with the finished fraction; may raise to stop.
        prefix_length: positions of the prefix at the beginning of every sequence. Moments contain
            them scaled (`statistics.prefix_scale`), losses and energies do not.

    Raises:
        NumericalError: if an activation is not finite or a factorisation fails, naming the layer.
    """
    hidden = layers.memory.copy(layers.embed(tokens).cpu())
    trials = TrialCuts(layers, check, batch_size=batch_size, prefix_length=prefix_length)
    spots = {*range(0, layers.num_layers, SPOT_DISTANCE), layers.num_layers - 1}
    sensitivities = []
    for layer in range(layers.num_layers):
        try:
            layer_pass = _LayerPass(layers, layer, tokens.shape[1], prefix_length)
            for number, rows in enumerate(torch.split(hidden, batch_size)):
                done = number * batch_size / len(tokens)
                before_batch((layer + done) / layers.num_layers)
                rows.copy_(layer_pass.advance(rows))
            fisher = None if gradients is None else gradients.read(layer)
            sensitivity = layer_pass.sensitivity(
                None if fisher is None else (fisher.attention, fisher.mlp)
            )
            trials.pass_layer(layer, layer_pass.trials(sensitivity) if layer in spots else ())
        except NumericalError as error:
            raise NumericalError(
                error.message, layer=layer, module=error.module, hint=error.hint
            ) from error
        sensitivities.append(sensitivity.to(torch.device("cpu")))
    return ModelSensitivity(layers=tuple(sensitivities), trials=trials.measured())


class _LayerPass:
    """Pass of the hidden states through one dense layer, with its accumulated statistics."""

    def __init__(self, layers: DenseLayers, layer: int, length: int, prefix_length: int) -> None:
        self._prefix_length = prefix_length
        self._weights = layers.weights(layer)
        self._settings = layers.settings(layer)
        self._rotary = layers.rotary(layer, length)
        weights, settings = self._weights, self._settings
        self._attention_space = attention_space(weights, settings)
        self._mlp_space = mlp_space(weights, settings)
        self._device = weights.up.weight.device
        self._heads = _MeanOuter()
        self._neurons = _MeanOuter()
        self._hidden_energy = 0.0
        self._tokens = 0
        self._energies = HeadEnergyAccumulator(
            num_attention_heads=settings.num_attention_heads,
            num_key_value_heads=settings.num_key_value_heads,
            pairs=settings.head_dim // 2,
            device=self._device,
            prefix_length=prefix_length,
        )
        self._pair_inputs: list[tuple[Tensor, Tensor, Tensor]] = []
        """Queries, keys and values of the first `PAIR_SEQUENCES` sequences."""

    def advance(self, rows: Tensor) -> Tensor:
        """Add one batch to the statistics and return the hidden states after the layer.

        Args:
            rows: hidden states before the layer, (batch, sequence, hidden_size).
        """
        weights, settings = self._weights, self._settings
        hidden = rows.to(self._device)
        text = hidden[:, self._prefix_length :]
        self._hidden_energy += float(text.float().square().sum())
        self._tokens += text.shape[0] * text.shape[1]
        inner = self._attend(decoder_layer.attention_inputs(hidden, weights, settings))
        observation = self._attention_space.observe(inner, inner)
        between = hidden + observation.added
        self._heads.add(scaled(observation.inner, prefix_scale(between, self._prefix_length)))
        inner = decoder_layer.mlp_inner(
            hidden if settings.parallel_block else between, weights, settings
        )
        observation = self._mlp_space.observe(inner, inner)
        after = between + observation.added
        self._neurons.add(scaled(observation.inner, prefix_scale(after, self._prefix_length)))
        return after.to(rows.device)

    def _attend(self, normed: Tensor) -> Tensor:
        """Return the attention's `o`; record energies, and inputs of the pairs' effects."""
        weights, settings = self._weights, self._settings
        projected = decoder_layer.queries_and_keys(normed, weights)
        self._energies.add(*projected)
        query, key = decoder_layer.normed_and_rotated(*projected, weights, settings, self._rotary)
        value = decoder_layer.values(normed, weights)
        for sequence in zip(query, key, value, strict=True):
            if len(self._pair_inputs) < PAIR_SEQUENCES:
                self._pair_inputs.append(sequence)
        return decoder_layer.attend(query, key, value, settings)

    def sensitivity(self, metrics: tuple[Tensor, Tensor] | None) -> LayerSensitivity:
        """Return the layer's sensitivity, after all sequences have passed.

        Args:
            metrics: Fisher matrices of attention and MLP outputs, or None.

        Raises:
            NumericalError: if a moment is not finite or a factorisation fails.
        """
        attention, mlp = self._metrics(metrics)
        energies = self._energies.energies()
        effects = self._pair_effects(attention)
        moment, scores = effects.moment(), self._score_directions(effects)
        directions, spectrum = self._value_directions(attention)
        order, cost = self._eliminate_neurons(mlp)
        heads, shares = self._eliminate_heads(attention)
        head_losses = 0.5 * heads.cost
        head_losses[0] = head_losses[:, 0] = self._removal_loss(
            self._heads, self._attention_space, attention
        )
        widths = _losses(cost)
        # Because of a bias, removing the whole MLP may cost less than removing all neurons but
        # one, but curves never fall towards smaller sizes.
        removal = self._removal_loss(self._neurons, self._mlp_space, mlp)
        widths[0] = max(float(widths[1]), removal)
        return LayerSensitivity(
            pair_moment=moment,
            query_energy=energies.query,
            key_energy=energies.key,
            value_directions=directions,
            value_spectrum=spectrum,
            neuron_order=order,
            pair_losses=_pair_losses(moment) if scores is None else _score_losses(scores),
            value_losses=_losses(spectrum.sum(0).flip(-1)),
            width_losses=widths,
            group_order=heads.group_order,
            query_order=heads.query_order,
            head_losses=head_losses,
            head_shares=shares,
            query_directions=None if scores is None else scores.query,
            key_directions=None if scores is None else scores.key,
        )

    def _metrics(self, metrics: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return the Fisher matrices, or without them the identity over the mean energy."""
        if metrics is not None:
            return metrics[0].to(self._device), metrics[1].to(self._device)
        width = self._weights.attention_output.weight.shape[0]
        identity = torch.eye(width, dtype=linalg.WORKING_DTYPE, device=self._device)
        scaled = identity * (self._tokens / self._hidden_energy)
        return scaled, scaled

    def _eliminate_neurons(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        """Return removal order and costs of all neurons, (intermediate_size,) each."""
        width = self._weights.up.weight.shape[0]
        rows = self._mlp_space.rows()[:width] @ fisher_factor(metric)
        moment = linalg.shrunken(self._neurons.mean()[:width, :width], CHOICE_SHRINKAGE)
        factor = linalg.damped_cholesky(moment, NEURON_DAMPING)
        choice = neurons.eliminate_neurons(factor, rows, 0)
        return choice.removal_order, choice.removal_cost

    def _eliminate_heads(self, metric: Tensor) -> tuple[HeadChoice, Tensor]:
        """Return order and cost of heads, and the share of the output of every rectangle."""
        settings = self._settings
        rows = self._head_rows().flatten(0, 1) @ fisher_factor(metric)
        moment = self._heads.mean()[: rows.shape[0], : rows.shape[0]]
        moment = linalg.shrunken(moment, CHOICE_SHRINKAGE)
        factor = linalg.damped_cholesky(moment, NEURON_DAMPING)
        choice = eliminate_heads(
            factor, rows, settings.num_attention_heads, settings.num_key_value_heads
        )
        return choice, choice.shares(head_energies(moment, rows, settings.num_attention_heads))

    @staticmethod
    def _removal_loss(inner: _MeanOuter, space: OutputSpace, metric: Tensor) -> float:
        """Return the predicted loss of removing a whole module, its bias included."""
        rows = space.rows() @ fisher_factor(metric)
        return 0.5 * float((rows * (inner.mean() @ rows)).sum())

    def _head_rows(self) -> Tensor:
        """Return the output projection by heads, (num_attention_heads, head_dim, hidden_size)."""
        settings = self._settings
        heads, head_dim = settings.num_attention_heads, settings.head_dim
        return self._attention_space.rows()[: heads * head_dim].view(heads, head_dim, -1)

    @property
    def has_free_basis(self) -> bool:
        """Return whether queries and keys may be in any basis: without RoPE and norms on them."""
        return not self._settings.rotates and self._weights.query_norm is None

    def _score_directions(self, effects: PairEffectAccumulator) -> ScoreDirections | None:
        """Return directions of queries and keys; None where only pairs may be selected."""
        return score_directions(*effects.score_moments()) if self.has_free_basis else None

    def _pair_effects(self, metric: Tensor) -> PairEffectAccumulator:
        """Return the effects of pairs and scores, weighed by each head's output metric."""
        rows, settings = self._head_rows(), self._settings
        head_metric = fisher_factor(rows @ metric @ rows.mT)
        effects = PairEffectAccumulator(
            num_key_value_heads=settings.num_key_value_heads,
            head_dim=settings.head_dim,
            settings=settings,
            device=self._device,
            with_score_moments=self.has_free_basis,
        )
        for query, key, value in self._pair_inputs:
            positions = _query_positions(self._prefix_length, query.shape[1], self._device)
            effects.add(query, key, value, head_metric, positions)
        return effects

    def _value_directions(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        """Return value directions and spectrum, weighed by the metric."""
        settings = self._settings
        width = settings.num_attention_heads * settings.head_dim
        moment = value_basis.group_second_moment(
            self._heads.mean()[:width, :width], settings.num_key_value_heads, settings.head_dim
        )
        rows = self._head_rows().flatten(0, 1) @ fisher_factor(metric)
        return value_basis.weighted_directions(moment, rows)

    # -- trial cuts ------------------------------------------------------------------------

    def trials(self, sensitivity: LayerSensitivity) -> tuple[tuple[TrialCut, LayerWeights], ...]:
        """Return the layer with one module cut by each of `TRIAL_CUTS`, and the predictions."""
        return tuple(
            cut(sensitivity, fraction)
            for fraction in TRIAL_CUTS
            for cut in (self._cut_attention, self._cut_mlp)
        )

    def _cut_attention(
        self, sensitivity: LayerSensitivity, fraction: float
    ) -> tuple[TrialCut, LayerWeights]:
        """Cut and refit the attention's pairs and value dimensions by a fraction."""
        settings, space = self._settings, self._attention_space
        pairs = max(round((1 - fraction) * settings.head_dim / 2), 1)
        width = max(round((1 - fraction) * settings.head_dim), 1)
        _, weights = sensitivity.queries_and_keys(self._weights, pairs, settings)
        basis = sensitivity.basis(width)
        weights = slicing.project_values(weights, basis)
        projection = slicing.value_projection(basis, settings.num_attention_heads)
        projection = slicing.with_bias_row(projection, self._weights.attention_output)
        moment, rows = self._heads.mean(), space.rows()
        fitted = _refitted(
            projection.mT @ moment @ projection, projection.mT @ moment @ rows, projection.mT @ rows
        )
        output = slicing.output_projection(space.unscaled(fitted), self._weights.attention_output)
        predicted = float(sensitivity.pair_losses[pairs] + sensitivity.value_losses[width])
        return self._trial("attention", fraction, predicted), replace(
            weights, attention_output=output
        )

    def _cut_mlp(
        self, sensitivity: LayerSensitivity, fraction: float
    ) -> tuple[TrialCut, LayerWeights]:
        """Cut and refit the MLP's neurons by a fraction."""
        dense, space = self._weights.up.weight.shape[0], self._mlp_space
        width = max(round((1 - fraction) * dense), 1)
        kept_neurons = sensitivity.neurons(width)
        moment, rows = self._neurons.mean(), space.rows()
        bias = torch.arange(dense, rows.shape[0], device=kept_neurons.device)
        inputs = torch.cat((kept_neurons, bias))
        fitted = _refitted(moment[inputs][:, inputs], moment[inputs] @ rows, rows[inputs])
        weights = slicing.slice_neurons(self._weights, kept_neurons)
        output = slicing.output_projection(space.unscaled(fitted), self._weights.mlp_output)
        predicted = float(sensitivity.width_losses[width])
        return self._trial("mlp", fraction, predicted), replace(weights, mlp_output=output)

    @staticmethod
    def _trial(module: Module, fraction: float, predicted: float) -> TrialCut:
        """Return a trial not yet measured; `TrialCuts` fills in layer and loss."""
        return TrialCut(layer=0, module=module, cut=fraction, predicted=predicted, measured=0.0)


class _MeanOuter:
    """Accumulator of `E[z zᵀ]` over tokens."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, inner: Tensor) -> None:
        """Add inner activations, (…, width)."""
        flat = inner.flatten(0, -2)
        products = second_moment_sum(flat, flat).to(linalg.WORKING_DTYPE)
        self._sum = products if self._sum is None else self._sum.add_(products)
        self._tokens += flat.shape[0]

    def mean(self) -> Tensor:
        """Return the mean, (width, width), float64.

        Raises:
            NumericalError: if no tokens were added or an activation was not finite.
        """
        if self._sum is None:
            raise NumericalError("no tokens were seen")
        return linalg.require_finite(self._sum / self._tokens, "a second moment")


def fisher_factor(metric: Tensor) -> Tensor:
    """Return `F` with `F Fᵀ = G + damping`, (…, n, n), float64; rows of `W F` are in loss units.

    Raises:
        NumericalError: if the matrix is not finite or the damping ladder ends.
    """
    return linalg.damped_cholesky(metric, METRIC_DAMPING).cholesky


def _refitted(gram: Tensor, cross: Tensor, prior: Tensor) -> Tensor:
    """Return the ridge solution for the unpruned module's own output, shrunk to `prior`."""
    factor = linalg.damped_cholesky(gram, TRIAL_DAMPING)
    return prior + factor.solve(cross - gram @ prior)


def _losses(cost: Tensor) -> Tensor:
    """Return losses by the number kept, (n + 1,), from removal costs in order, (n,)."""
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    return 0.5 * removed.flip(0)


def _pair_losses(moment: Tensor) -> Tensor:
    """Return losses by the number of pairs kept; each KV head loses its own cheapest pairs.

    The last pair costs its own energy, since nothing can compensate for it.
    """
    cost = eliminate_pairs(moment, 1).removal_cost.sum(0)
    last = moment.diagonal(dim1=-2, dim2=-1).sum()
    return _losses(torch.cat((cost, last.unsqueeze(0).to(cost))))


def _score_losses(directions: ScoreDirections) -> Tensor:
    """Return losses by the number of pairs of directions kept in every KV head, (pairs + 1,)."""
    return _losses(directions.spectrum.sum(0).flip(-1))[::2]


def _query_positions(first: int, length: int, device: torch.device) -> Tensor:
    """Return at most `PAIR_QUERIES` query positions, evenly spaced from `first` to the end."""
    count = min(PAIR_QUERIES, length - first)
    return torch.linspace(first, length - 1, count, device=device).round().long()


# -- files -------------------------------------------------------------------------------------

_TRIALS = "trials"
"""Metadata key of the trial cuts."""


def save_sensitivity(file: Path, measured: ModelSensitivity) -> None:
    """Write the sensitivity to a safetensors file, atomically."""
    tensors: dict[str, Tensor] = {
        f"{number}.{name}": part.contiguous()
        for number, layer in enumerate(measured.layers)
        for name, part in layer.tensors().items()
    }
    trials = json.dumps([asdict(trial) for trial in measured.trials])
    with atomic_file(file) as partial:
        save_file(tensors, partial, {_TRIALS: trials})


def load_sensitivity(file: Path) -> ModelSensitivity | None:
    """Return the file's content; None if it does not exist or is damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            names = list(opened.keys())
            metadata = opened.metadata() or {}
            parts = {name: opened.get_tensor(name).clone() for name in names}
    except (FileNotFoundError, SafetensorError):
        return None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, part in parts.items():
        number, _, field = name.partition(".")
        layers.setdefault(int(number), {})[field] = part
    return ModelSensitivity(
        layers=tuple(LayerSensitivity(**layers[number]) for number in sorted(layers)),
        trials=tuple(TrialCut(**trial) for trial in json.loads(metadata[_TRIALS])),
    )
