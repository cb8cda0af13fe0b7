"""What one walk over the dense model learns for every ratio (sections 3 and 4 of docs/method.md).

A few calibration sequences pass the dense layers. Each layer leaves what all later choices need:
in which order its neurons go, in which directions its values are cut, what its rotary pairs do
together, and what each costs in loss by the Fisher matrices of `gradients`. From these come the
allocator's curves and, at any ratio, the choices themselves. Measured on SmolLM2-135M at 30 %,
choices made on the dense stream were no worse than choices made anew on the compressed stream.

The Fisher matrices take errors and gradients for independent, which they are not: near the output
they underestimate the damage several times, in the middle they overestimate it. So in some layers
(`spots`) modules are cut for trial, the cut model's loss is measured on sequences that nothing was
learnt from, and each module's curve is scaled by what was measured over what was predicted,
interpolated over the depth. All trials travel through the layers behind them in the same walk.
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
from intraslice_core.compensation import OutputSpace
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.plan import Module
from intraslice_core.selection import neurons, value_basis
from intraslice_core.selection.heads import HeadChoice, eliminate_heads, head_energies
from intraslice_core.selection.rotary_pairs import eliminate_pairs
from intraslice_core.sensitivity.gradients import GradientFiles
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity, with_pairs
from intraslice_core.sensitivity.pair_effects import PairEffectAccumulator
from intraslice_core.sensitivity.trial_cuts import TrialCut, TrialCuts
from intraslice_core.statistics import HeadEnergyAccumulator, second_moment_sum

NEURON_DAMPING = 1e-4
METRIC_DAMPING = 1e-3
"""Of the Fisher matrices, relative to the mean of their diagonal: a few sequences fill them."""
TRIAL_DAMPING = 1e-3
TRIAL_CUTS = (0.25, 0.5)
"""Fractions of a module's dimensions that are cut for trial."""
SPOT_DISTANCE = 5
"""Layers from one spot to the next; the last layer is one, too."""
PAIR_SEQUENCES = 8
"""Sequences whose queries show what rotary pairs do."""
PAIR_QUERIES = 128
"""Of each of these sequences."""


@dataclass(frozen=True, kw_only=True)
class ModelSensitivity:
    """Of all layers."""

    layers: tuple[LayerSensitivity, ...]
    trials: tuple[TrialCut, ...]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(part.nbytes for layer in self.layers for part in vars(layer).values())


def measure_layers(
    layers: DenseLayers,
    tokens: Tensor,
    check: Tensor,
    gradients: GradientFiles | None,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
) -> ModelSensitivity:
    """Walk over the dense model.

    Args:
        layers: the dense model.
        tokens: (sequences, length), what is learnt from.
        check: (sequences, length), on which trials are measured.
        gradients: of the loss; None weighs every module's output by 1/E‖x‖² of the stream.
        batch_size: sequences in one pass.
        before_batch: told the fraction that is done; may raise to stop.

    Raises:
        NumericalError: naming the layer.
    """
    hidden = layers.memory.copy(layers.embed(tokens).cpu())
    trials = TrialCuts(layers, check, batch_size=batch_size)
    spots = {*range(0, layers.num_layers, SPOT_DISTANCE), layers.num_layers - 1}
    known = []
    for layer in range(layers.num_layers):
        try:
            walk = _LayerPass(layers, layer, tokens.shape[1])
            for number, rows in enumerate(torch.split(hidden, batch_size)):
                done = number * batch_size / len(tokens)
                before_batch((layer + done) / layers.num_layers)
                rows.copy_(walk.pass_through(rows))
            metrics = None if gradients is None else gradients.read(layer)
            found = walk.sensitivity(None if metrics is None else (metrics.attention, metrics.mlp))
            trials.pass_layer(layer, walk.cuts(found) if layer in spots else ())
        except NumericalError as error:
            raise NumericalError(
                error.message, layer=layer, module=error.module, hint=error.hint
            ) from error
        known.append(found.to(torch.device("cpu")))
    return ModelSensitivity(layers=tuple(known), trials=trials.measured())


class _LayerPass:
    """One layer's sums, and what follows from them."""

    def __init__(self, layers: DenseLayers, layer: int, length: int) -> None:
        self._weights = layers.weights(layer)
        self._settings = layers.settings(layer)
        self._rotary = layers.rotary(layer, length)
        weights, settings = self._weights, self._settings
        self._attention_space = OutputSpace(
            output=weights.attention_output, norm=weights.attention_output_norm, settings=settings
        )
        self._mlp_space = OutputSpace(
            output=weights.mlp_output, norm=weights.mlp_output_norm, settings=settings
        )
        self._device = weights.up.weight.device
        self._heads = _MeanOuter()
        self._neurons = _MeanOuter()
        self._stream_energy = 0.0
        self._tokens = 0
        self._energies = HeadEnergyAccumulator(
            num_key_value_heads=settings.num_key_value_heads,
            pairs=settings.head_dim // 2,
            device=self._device,
        )
        self._asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def pass_through(self, rows: Tensor) -> Tensor:
        """The stream behind the layer, (batch, sequence, hidden_size)."""
        weights, settings = self._weights, self._settings
        hidden = rows.to(self._device)
        self._stream_energy += float(hidden.float().square().sum())
        self._tokens += hidden.shape[0] * hidden.shape[1]
        read = decoder_layer.attention_inputs(hidden, weights, settings)
        projected = decoder_layer.queries_and_keys(read, weights)
        self._energies.add(*projected)
        query, key = decoder_layer.normed_and_rotated(*projected, weights, settings, self._rotary)
        value = decoder_layer.values(read, weights)
        for one in zip(query, key, value, strict=True):
            if len(self._asked) < PAIR_SEQUENCES:
                self._asked.append(one)
        inner = decoder_layer.attend(query, key, value, settings)
        seen = self._attention_space.observe(inner, inner)
        self._heads.add(seen.inner)
        between = hidden + seen.added
        inner = decoder_layer.mlp_inner(
            hidden if settings.parallel_block else between, weights, settings
        )
        seen = self._mlp_space.observe(inner, inner)
        self._neurons.add(seen.inner)
        return (between + seen.added).to(rows.device)

    def sensitivity(self, metrics: tuple[Tensor, Tensor] | None) -> LayerSensitivity:
        """Everything there is to learn, once all sequences have passed."""
        attention, mlp = self._metrics(metrics)
        energies = self._energies.energies()
        moment = self._pair_moment(attention)
        directions, spectrum = self._value_directions(attention)
        order, cost = self._eliminate_neurons(mlp)
        heads, shares = self._eliminate_heads(attention)
        head_losses = 0.5 * heads.cost
        head_losses[0] = head_losses[:, 0] = self._whole(
            self._heads, self._attention_space, attention
        )
        widths = _losses(cost)
        widths[0] = max(
            float(widths[1]), self._whole(self._neurons, self._mlp_space, mlp)
        )  # a bias may make the whole cost less than all but one neuron: no curve falls so
        return LayerSensitivity(
            pair_moment=moment,
            query_energy=energies.query,
            key_energy=energies.key,
            value_directions=directions,
            value_spectrum=spectrum,
            neuron_order=order,
            pair_losses=_pair_losses(moment),
            value_losses=_losses(spectrum.sum(0).flip(-1)),
            width_losses=widths,
            group_order=heads.group_order,
            query_order=heads.query_order,
            head_losses=head_losses,
            head_shares=shares,
        )

    def _metrics(self, metrics: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The Fisher matrices; without gradients the identity over the stream's mean energy."""
        if metrics is not None:
            return metrics[0].to(self._device), metrics[1].to(self._device)
        width = self._weights.attention_output.weight.shape[0]
        plain = torch.eye(width, dtype=linalg.WORKING_DTYPE, device=self._device)
        plain = plain * (self._tokens / self._stream_energy)
        return plain, plain

    def _eliminate_neurons(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        width = self._weights.up.weight.shape[0]
        rows = self._mlp_space.rows()[:width] @ fisher_factor(metric)
        factor = linalg.damped_cholesky(self._neurons.mean()[:width, :width], NEURON_DAMPING)
        choice = neurons.eliminate_neurons(factor, rows, 0)
        return choice.removal_order, choice.removal_cost

    def _eliminate_heads(self, metric: Tensor) -> tuple[HeadChoice, Tensor]:
        """The heads' order and cost, and the share of the output that every rectangle holds."""
        settings = self._settings
        rows = self._head_rows().flatten(0, 1) @ fisher_factor(metric)
        moment = self._heads.mean()[: rows.shape[0], : rows.shape[0]]
        factor = linalg.damped_cholesky(moment, NEURON_DAMPING)
        choice = eliminate_heads(
            factor, rows, settings.num_attention_heads, settings.num_key_value_heads
        )
        return choice, choice.shares(head_energies(moment, rows, settings.num_attention_heads))

    @staticmethod
    def _whole(inner: _MeanOuter, space: OutputSpace, metric: Tensor) -> float:
        """Loss of a removed module, bias included, for which nothing makes up."""
        rows = space.rows() @ fisher_factor(metric)
        return 0.5 * float((rows * (inner.mean() @ rows)).sum())

    def _head_rows(self) -> Tensor:
        """The output projection by heads, (num_attention_heads, head_dim, hidden_size)."""
        settings = self._settings
        heads, head_dim = settings.num_attention_heads, settings.head_dim
        return self._attention_space.rows()[: heads * head_dim].view(heads, head_dim, -1)

    def _pair_moment(self, metric: Tensor) -> Tensor:
        """In units of loss: each head's output is seen through its rows of `W_o` and the metric."""
        rows, settings = self._head_rows(), self._settings
        seen = fisher_factor(rows @ metric @ rows.mT)
        effects = PairEffectAccumulator(
            num_key_value_heads=settings.num_key_value_heads,
            head_dim=settings.head_dim,
            settings=settings,
            device=self._device,
        )
        for query, key, value in self._asked:
            effects.add(query, key, value, seen, _spread(query.shape[1], self._device))
        return effects.moment()

    def _value_directions(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        width = settings.num_attention_heads * settings.head_dim
        moment = value_basis.group_second_moment(
            self._heads.mean()[:width, :width], settings.num_key_value_heads, settings.head_dim
        )
        rows = self._head_rows().flatten(0, 1) @ fisher_factor(metric)
        return value_basis.weighted_directions(moment, rows)

    # -- trials ----------------------------------------------------------------------------

    def cuts(self, found: LayerSensitivity) -> tuple[tuple[TrialCut, LayerWeights], ...]:
        """The layer with one module cut, by as much as `TRIAL_CUTS` says, and the prediction."""
        return tuple(
            cut(found, fraction) for fraction in TRIAL_CUTS for cut in (self._attention, self._mlp)
        )

    def _attention(self, found: LayerSensitivity, fraction: float) -> tuple[TrialCut, LayerWeights]:
        settings, space = self._settings, self._attention_space
        pairs = max(round((1 - fraction) * settings.head_dim / 2), 1)
        width = max(round((1 - fraction) * settings.head_dim), 1)
        weights = with_pairs(self._weights, found.pairs(pairs), settings, found.energies)
        basis = found.basis(width)
        weights = slicing.project_values(weights, basis)
        projection = slicing.value_projection(basis, settings.num_attention_heads)
        projection = slicing.with_bias_row(projection, self._weights.attention_output)
        moment, rows = self._heads.mean(), space.rows()
        fitted = _refitted(
            projection.mT @ moment @ projection, projection.mT @ moment @ rows, projection.mT @ rows
        )
        output = slicing.output_projection(space.unscaled(fitted), self._weights.attention_output)
        predicted = float(found.pair_losses[pairs] + found.value_losses[width])
        return self._trial("attention", fraction, predicted), replace(
            weights, attention_output=output
        )

    def _mlp(self, found: LayerSensitivity, fraction: float) -> tuple[TrialCut, LayerWeights]:
        dense, space = self._weights.up.weight.shape[0], self._mlp_space
        width = max(round((1 - fraction) * dense), 1)
        kept = found.neurons(width)
        moment, rows = self._neurons.mean(), space.rows()
        chosen = torch.cat((kept, torch.arange(dense, rows.shape[0], device=kept.device)))
        fitted = _refitted(moment[chosen][:, chosen], moment[chosen] @ rows, rows[chosen])
        weights = slicing.slice_neurons(self._weights, kept)
        output = slicing.output_projection(space.unscaled(fitted), self._weights.mlp_output)
        predicted = float(found.width_losses[width])
        return self._trial("mlp", fraction, predicted), replace(weights, mlp_output=output)

    @staticmethod
    def _trial(module: Module, fraction: float, predicted: float) -> TrialCut:
        return TrialCut(layer=0, module=module, cut=fraction, predicted=predicted, measured=0.0)


class _MeanOuter:
    """`E[z zᵀ]` over tokens."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, inner: Tensor) -> None:
        """Take (…, width)."""
        flat = inner.flatten(0, -2)
        products = second_moment_sum(flat, flat).to(linalg.WORKING_DTYPE)
        self._sum = products if self._sum is None else self._sum.add_(products)
        self._tokens += flat.shape[0]

    def mean(self) -> Tensor:
        """(width, width), float64.

        Raises:
            NumericalError: if an activation was not finite.
        """
        if self._sum is None:
            raise NumericalError("no tokens were seen")
        return linalg.require_finite(self._sum / self._tokens, "a second moment")


def fisher_factor(metric: Tensor) -> Tensor:
    """`F` with `F Fᵀ = G`, slightly damped: squared lengths of `W F` are losses. (…, n, n)."""
    return linalg.damped_cholesky(metric, METRIC_DAMPING).cholesky


def _refitted(gram: Tensor, cross: Tensor, prior: Tensor) -> Tensor:
    """Least squares for the un-pruned module's own output, near `prior`."""
    factor = linalg.damped_cholesky(gram, TRIAL_DAMPING)
    return prior + factor.solve(cross - gram @ prior)


def _losses(cost: Tensor) -> Tensor:
    """Loss by the number kept, (n + 1,), from the cost of removals in their order, (n,)."""
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    return 0.5 * removed.flip(0)


def _pair_losses(moment: Tensor) -> Tensor:
    """Every KV head loses its own cheapest pairs; the last costs as if nothing made up for it."""
    cost = eliminate_pairs(moment, 1).removal_cost.sum(0)
    last = moment.diagonal(dim1=-2, dim2=-1).sum()
    return _losses(torch.cat((cost, last.unsqueeze(0).to(cost))))


def _spread(length: int, device: torch.device) -> Tensor:
    """Positions of queries, evenly over a sequence."""
    count = min(PAIR_QUERIES, length)
    return torch.linspace(0, length - 1, count, device=device).round().long()


_TRIALS = "trials"


def save_sensitivity(file: Path, measured: ModelSensitivity) -> None:
    """Write the file; it appears whole or not at all."""
    tensors: dict[str, Tensor] = {
        f"{number}.{name}": part.contiguous()
        for number, layer in enumerate(measured.layers)
        for name, part in vars(layer).items()
    }
    trials = json.dumps([asdict(trial) for trial in measured.trials])
    with atomic_file(file) as partial:
        save_file(tensors, partial, {_TRIALS: trials})


def load_sensitivity(file: Path) -> ModelSensitivity | None:
    """What the file holds; None if there is none, or it is damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            names = list(opened.keys())
            facts = opened.metadata() or {}
            parts = {name: opened.get_tensor(name).clone() for name in names}
    except (FileNotFoundError, SafetensorError):
        return None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, part in parts.items():
        number, _, field = name.partition(".")
        layers.setdefault(int(number), {})[field] = part
    return ModelSensitivity(
        layers=tuple(LayerSensitivity(**layers[number]) for number in sorted(layers)),
        trials=tuple(TrialCut(**one) for one in json.loads(facts[_TRIALS])),
    )
