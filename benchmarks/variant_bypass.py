"""A linear map beside the MLP that is paid for with neurons; `bypass.py` estimates lower ranks.

A layer with a bypass has a down projection whose first `hidden_size` columns read the MLP's normed
input, and the others the neurons. It works where `bypasses` is entered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg, slicing
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.compensation import OutputSpace, SplitAccumulator
from intraslice_core.decoder_layer import LayerSettings, LayerWeights
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.plan import ModelPlan
from intraslice_core.selection.neurons import eliminate_neurons
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import (
    CHOICE_SHRINKAGE,
    NEURON_DAMPING,
    fisher_factor,
)
from intraslice_core.statistics import second_moment_sum

if TYPE_CHECKING:
    from variant_calibration import HeldLayers

_mlp_inner = decoder_layer.mlp_inner
_neurons_first = slicing.neurons_first


def with_bypass(weights: LayerWeights) -> LayerWeights:
    """Return the same layer with a bypass of zeros, which the refit then fits."""
    output = weights.mlp_output
    zeros = output.weight.new_zeros(len(output.weight), len(output.weight))
    wide = replace(output, weight=torch.cat((zeros, output.weight), dim=1))
    return replace(weights, mlp_output=wide)


def has_bypass(weights: LayerWeights) -> bool:
    """Report whether the down projection reads more than the neurons."""
    return weights.mlp_output.weight.shape[1] > weights.up.weight.shape[0]


def exchanged_neurons(weights: LayerWeights) -> int:
    """Return the neurons that cost at least as many parameters as the bypass of a dense layer."""
    projections = 2 if weights.gate is None else 3
    return -(-len(weights.mlp_output.weight) // projections)


@contextmanager
def bypasses() -> Iterator[None]:
    """Let the engine's layers have bypasses inside the context."""
    with (
        mock.patch.object(decoder_layer, "mlp_inner", _inner_with_bypass),
        mock.patch.object(slicing, "neurons_first", _neurons_first_after_bypass),
    ):
        yield


def _inner_with_bypass(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return the input of the down projection, (…, [hidden_size +] intermediate_size)."""
    inner = _mlp_inner(hidden, weights, settings)
    if not has_bypass(weights):
        return inner
    return torch.cat((_normed(hidden, weights, settings), inner), dim=-1)


def _normed(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    return decoder_layer.apply_norm(hidden, weights.mlp_norm or weights.input_norm, settings)


def _neurons_first_after_bypass(weights: LayerWeights, neurons: Tensor) -> LayerWeights:
    """Return the same MLP with these neurons after the bypass and before the others."""
    if not has_bypass(weights):
        return _neurons_first(weights, neurons)
    hidden = len(weights.mlp_output.weight)
    output = weights.mlp_output
    without_bypass = replace(output, weight=output.weight[:, hidden:])
    ordered = _neurons_first(replace(weights, mlp_output=without_bypass), neurons)
    wide = torch.cat((output.weight[:, :hidden], ordered.mlp_output.weight), dim=1)
    return replace(ordered, mlp_output=replace(output, weight=wide))


class BypassCompressor(LayerCompressor):
    """Compressor of layers that may have a bypass; neurons are chosen by measured sensitivity."""

    def _mlp_inputs(self, kept_neurons: Tensor) -> Tensor:
        if not has_bypass(self._dense):
            return super()._mlp_inputs(kept_neurons)
        hidden = len(self._dense.mlp_output.weight)
        bypass = torch.arange(hidden, device=kept_neurons.device)
        return torch.cat((bypass, super()._mlp_inputs(hidden + kept_neurons)))

    def _accumulator(
        self,
        space: OutputSpace,
        *,
        own_is_linear: bool,
        width: int | None = None,
        kept: int | None = None,
    ) -> SplitAccumulator:
        if kept is not None and has_bypass(self._dense):
            kept += len(self._dense.mlp_output.weight)
        return super()._accumulator(space, own_is_linear=own_is_linear, width=width, kept=kept)


# -- the exchange ------------------------------------------------------------------------------


def exchanged(
    layers: HeldLayers,
    plan: ModelPlan,
    sensitivity: Sequence[LayerSensitivity],
    split: CalibrationSplit,
    batch_size: int,
) -> tuple[HeldLayers, ModelPlan, list[LayerSensitivity]]:
    """Return the model, its shapes and its orders of neurons after all exchanges that gain.

    A layer gets a bypass if that and fewer neurons are predicted to lose less than its plan.

    Args:
        layers: the dense model. Positions of the prefix count like any other.
        plan: shapes without bypasses.
        sensitivity: of all layers.
        split: sequences of the pass over the dense model and of the Fisher matrices.
        batch_size: sequences in one batch.
    """
    held, plans, choices = list(layers.held), list(plan.layers), list(sensitivity)
    for layer, moments in enumerate(_moments(layers, split, batch_size)):
        keep, paid = plans[layer].intermediate_size, exchanged_neurons(held[layer])
        if keep <= paid:
            continue
        order = moments.order()
        joint = moments.loss(order[-(keep - paid) :], bypass=True)
        if joint < moments.loss(choices[layer].neurons(keep), bypass=False):
            held[layer] = with_bypass(held[layer])
            plans[layer] = plans[layer].model_copy(update={"intermediate_size": keep - paid})
            choices[layer] = replace(choices[layer], neuron_order=order)
    return layers.replaced(held), ModelPlan(layers=tuple(plans)), choices


@dataclass(frozen=True, kw_only=True)
class _MlpMoments:
    """Second moments of an MLP's normed input and neurons."""

    moment: Tensor
    """(d + f, d + f), float64."""
    rows: Tensor
    """Down projection in units of loss by rows of neurons, (f, d), float64."""

    def order(self) -> Tensor:
        """Return the removal order of the neurons with the bypass in place, (f,).

        Neurons that it replaces go first.
        """
        hidden = self.rows.shape[1]
        gram = linalg.shrunken(self.moment[hidden:, hidden:], CHOICE_SHRINKAGE)
        cross = self.moment[hidden:, :hidden]
        inputs = linalg.damped_cholesky(self.moment[:hidden, :hidden], NEURON_DAMPING)
        factor = linalg.damped_cholesky(gram - cross @ inputs.solve(cross.mT), NEURON_DAMPING)
        return eliminate_neurons(factor, self.rows, 0).removal_order

    def loss(self, neurons: Tensor, *, bypass: bool) -> float:
        """Return the predicted loss of a fit to some neurons, (k,), and to the bypass if any."""
        width, hidden = self.rows.shape
        removed = torch.ones(width, dtype=torch.bool)
        removed[neurons] = False
        index = hidden + neurons
        if bypass:
            index = torch.cat((torch.arange(hidden), index))
        removed_index = hidden + removed.nonzero().flatten()
        rows = self.rows[removed]
        target = self.moment[index][:, removed_index] @ rows
        factor = linalg.damped_cholesky(self.moment[index][:, index], NEURON_DAMPING)
        energy = (rows * (self.moment[removed_index][:, removed_index] @ rows)).sum()
        return 0.5 * float(energy - (target * factor.solve(target)).sum())


def _moments(
    layers: DenseLayers, split: CalibrationSplit, batch_size: int
) -> Iterator[_MlpMoments]:
    """Yield the moments of every layer in order, by one pass over the dense model."""
    with tempfile.TemporaryDirectory() as folder:
        gradients = GradientFiles(directory=Path(folder))
        loss_gradients(
            layers,
            split.metric,
            batch_size=batch_size,
            files=gradients,
            before_batch=lambda _: None,
            prefix_length=split.prefix_length,
        )
        hidden = layers.embed(split.sensitivity)
        for layer in range(layers.num_layers):
            moment = pass_layer(layers, layer, hidden, batch_size)
            factor = fisher_factor(gradients.read(layer).mlp)
            output = layers.weights(layer).mlp_output.weight.mT.double()
            yield _MlpMoments(moment=moment, rows=output @ factor)


def pass_layer(layers: DenseLayers, layer: int, hidden: Tensor, batch_size: int) -> Tensor:
    """Advance hidden states past a dense layer, in place.

    Returns:
        The second moment of the MLP's normed input and neurons, (d + f, d + f), float64.
    """
    weights, settings = layers.weights(layer), layers.settings(layer)
    rotary, total = layers.rotary(layer, hidden.shape[1]), torch.zeros(())
    for rows in hidden.split(batch_size):
        between = rows + decoder_layer.attention(rows, weights, settings, rotary)
        inner = _mlp_inner(between, weights, settings)
        both = torch.cat((_normed(between, weights, settings), inner), dim=-1).flatten(0, 1)
        total = total + second_moment_sum(both, both).double()
        added = decoder_layer.added(inner, weights.mlp_output, weights.mlp_output_norm, settings)
        rows.copy_(between + added)
    return total / (hidden.shape[0] * hidden.shape[1])
