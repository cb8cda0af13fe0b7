"""Layers cut to a plan and refitted by the dense layer's moments, and the trials that use them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.checkpoints.dense_model import DenseLayerReader, divergences
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.compensation import mlp_space
from intraslice_core.plan import LayerPlan
from intraslice_core.sensitivity import measurement, trial_cuts
from intraslice_core.sensitivity.cut_layers import CuttableLayer
from intraslice_core.sensitivity.dense_pass import DensePass
from intraslice_core.sensitivity.trial_cuts import TrialCut, TrialCuts, trial_cut_tokens
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model

CPU = torch.device("cpu")


def draw(sequences: int = 6, length: int = 24) -> Tensor:
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(0))


@contextmanager
def opened(directory: Path) -> Iterator[DenseLayerReader]:
    with CheckpointReader(directory) as reader, torch.inference_mode():
        yield DenseLayerReader(reader, CPU, torch.float32)


def cuttable(layers: DenseLayerReader, hidden: Tensor) -> CuttableLayer:
    """Return the first layer, measured on `hidden`."""
    layer_pass = measurement._LayerPass(layers, 0, hidden.shape[1], 0)
    layer_pass.advance(hidden)
    return CuttableLayer(
        weights=layer_pass.weights,
        settings=layers.settings(0),
        sensitivity=layer_pass.sensitivity(None),
        moments=layer_pass.moments,
        damping=1e-3,
    )


def dense_plan(layer: CuttableLayer) -> LayerPlan:
    settings = layer.settings
    return LayerPlan(
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        qk_pairs=settings.head_dim // 2,
        v_head_dim=settings.head_dim,
        intermediate_size=len(layer.weights.up.weight),
    )


@pytest.mark.parametrize("variant", ["llama", "phi", "gemma3", "opt"])
def test_a_cut_layer_has_the_sizes_of_its_plan(variant, tmp_path):
    directory = save_checkpoint(tiny_family_model(variant), tmp_path)
    with opened(directory) as layers:
        hidden = layers.embed(draw())
        layer = cuttable(layers, hidden)
        whole = dense_plan(layer)
        assert layer.cut(whole) is layer.weights
        plan = whole.model_copy(
            update={
                "num_attention_heads": whole.num_attention_heads // whole.num_key_value_heads,
                "num_key_value_heads": 1,
                "qk_pairs": whole.qk_pairs - 1,
                "v_head_dim": whole.v_head_dim - 2,
                "intermediate_size": whole.intermediate_size - 3,
            }
        )
        cut = layer.cut(plan)
        assert cut.num_key_value_heads == 1
        assert cut.num_attention_heads == plan.num_attention_heads
        assert len(cut.key.weight) == plan.qk_head_dim
        assert len(cut.value.weight) == plan.v_head_dim
        assert cut.mlp_output.weight.shape[1] == len(cut.up.weight) == plan.intermediate_size
        rotary = layers.rotary(0, hidden.shape[1])
        assert torch.isfinite(decoder_layer.forward(hidden, cut, layer.settings, rotary)).all()
        empty = layer.cut(
            plan.model_copy(update={"num_attention_heads": 0, "intermediate_size": 0})
        )
        assert not empty.has_attention
        assert not empty.has_mlp


def test_the_refit_makes_up_for_a_part_of_the_removed_neurons(tmp_path):
    with opened(save_checkpoint(tiny_family_model("llama"), tmp_path)) as layers:
        hidden = layers.embed(draw(64))
        layer = cuttable(layers, hidden)
        plan = dense_plan(layer)
        plan = plan.model_copy(update={"intermediate_size": plan.intermediate_size // 2})
        neurons = layer.sensitivity.neurons(plan.intermediate_size)
        sliced = slicing.slice_neurons(layer.weights, neurons)
        plain = decoder_layer.LayerWeights(
            **vars(sliced) | {"mlp_output": slicing.select_inputs(sliced.mlp_output, neurons)}
        )
        rotary = layers.rotary(0, hidden.shape[1])
        hidden = hidden + decoder_layer.attention(hidden, layer.weights, layer.settings, rotary)
        target = decoder_layer.mlp(hidden, layer.weights, layer.settings)
        errors = [
            float((decoder_layer.mlp(hidden, weights, layer.settings) - target).square().sum())
            for weights in (plain, layer.cut_mlp(layer.weights, plan))
        ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("variant", ["llama", "opt"])
def test_the_refit_is_the_least_squares_solution_shrunk_to_the_weights(variant, tmp_path):
    with opened(save_checkpoint(tiny_family_model(variant), tmp_path)) as layers:
        layer = replace(cuttable(layers, layers.embed(draw(64))), per_dimension=True)
        width = len(layer.weights.up.weight)
        plan = dense_plan(layer).model_copy(update={"intermediate_size": width // 3})
        cut = layer.cut_mlp(layer.weights, plan)
        moment = layer.moments.mlp
        neurons = layer.sensitivity.neurons(plan.intermediate_size)
        inputs = torch.cat((neurons, torch.arange(width, len(moment))))
        rows = mlp_space(layer.weights, layer.settings).rows()
        gram = moment[inputs][:, inputs]
        residual = moment[inputs] @ rows - gram @ rows[inputs]
        damped = gram + 1e-3 * torch.diag(gram.diagonal())
        expected = rows[inputs] + torch.linalg.solve(damped, residual)
    output = cut.mlp_output
    fitted = [output.weight.mT] if output.bias is None else [output.weight.mT, output.bias[None]]
    torch.testing.assert_close(torch.cat(fitted).double(), expected, rtol=1e-3, atol=1e-5)


def test_moments_do_not_depend_on_the_batches(tmp_path):
    with opened(save_checkpoint(tiny_family_model("gemma3_biased"), tmp_path)) as layers:
        hidden = layers.embed(draw())
        whole, split = (DensePass(layers, 0, hidden.shape[1], 1) for _ in range(2))
        after = whole.advance(hidden)
        parts = [split.advance(rows) for rows in torch.split(hidden, 4)]
        torch.testing.assert_close(torch.cat(parts), after)
        torch.testing.assert_close(split.moments.mlp, whole.moments.mlp, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            split.moments.attention, whole.moments.attention, rtol=1e-4, atol=1e-7
        )


def test_trials_that_pass_the_layers_together_equal_separate_passes(tmp_path):
    tokens = draw(3)
    with opened(save_checkpoint(tiny_family_model("llama"), tmp_path)) as layers:
        count, hidden = layers.num_layers, layers.embed(tokens)
        halved = {layer: with_half_the_neurons(layers, layer) for layer in range(count)}
        trials = TrialCuts(layers, tokens, batch_size=2)
        for layer in range(count):
            trials.pass_layer(layer, [(trial(), halved[layer])])
        measured = trials.measured()
        dense = passed(layers, hidden, {})
        expected = []
        for layer, weights in halved.items():
            cut = passed(layers, hidden, {layer: weights})
            by_sequence = divergences(layers, dense, cut[None])[0].mean(1).tolist()
            expected.append(math.prod(by_sequence) ** (1 / len(by_sequence)))
    assert [cut.layer for cut in measured] == list(range(count))
    assert [cut.measured for cut in measured] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("length", "positions"), [(64, 256), (512, 512)])
def test_the_output_head_runs_at_few_positions_of_long_check_sequences(
    tmp_path, monkeypatch, length, positions
):
    sizes = []

    def recording(*arguments, **options):
        result = divergences(*arguments, **options)
        sizes.append(result[0].numel())
        return result

    monkeypatch.setattr(trial_cuts, "divergences", recording)
    tokens = draw(4, length)
    with opened(save_checkpoint(tiny_family_model("llama"), tmp_path)) as layers:
        trials = TrialCuts(layers, tokens, batch_size=2)
        for layer in range(layers.num_layers):
            trials.pass_layer(layer, [(trial(), layers.weights(layer))])
        trials.measured()
    assert sizes == [positions]


def test_one_sequence_on_which_a_cut_costs_a_thousand_times_as_much_does_not_decide():
    alike = torch.tensor([0.01, 0.02, 0.01, 0.02])
    assert trial_cuts.geometric_mean(alike) == pytest.approx(0.01 * 2**0.5)
    apart = torch.tensor([0.01, 0.02, 10.0, 0.02])
    assert float(apart.mean()) > 150 * float(alike.mean())
    assert trial_cuts.geometric_mean(apart) == pytest.approx(0.01 * 4000**0.25)
    assert trial_cuts.geometric_mean(torch.tensor([0.0, 1.0])) == 0.0


def trial() -> TrialCut:
    return TrialCut(layer=0, module="mlp", cut=0.5, predicted=0.0, measured=0.0)


def with_half_the_neurons(layers: DenseLayerReader, layer: int) -> decoder_layer.LayerWeights:
    """Return a layer with the first half of its neurons."""
    weights = layers.weights(layer)
    neurons = torch.arange(len(weights.up.weight) // 2)
    sliced = slicing.slice_neurons(weights, neurons)
    return decoder_layer.LayerWeights(
        **vars(sliced) | {"mlp_output": slicing.select_inputs(weights.mlp_output, neurons)}
    )


def passed(
    layers: DenseLayerReader, hidden: Tensor, cut: dict[int, decoder_layer.LayerWeights]
) -> Tensor:
    """Return hidden states after all layers, of which some are replaced."""
    for layer in range(layers.num_layers):
        weights = cut.get(layer) or layers.weights(layer)
        rotary = layers.rotary(layer, hidden.shape[1])
        hidden = decoder_layer.forward(hidden, weights, layers.settings(layer), rotary)
    return hidden


def test_trial_cuts_pass_a_bounded_number_of_tokens():
    assert trial_cut_tokens(draw(8, 2048)).shape == (4, 512)
    assert trial_cut_tokens(draw(1, 2048)).shape == (1, 2048)
    assert trial_cut_tokens(draw(8, 16)).shape == (4, 16)
