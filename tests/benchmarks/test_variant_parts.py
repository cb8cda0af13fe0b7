"""Variants of the method: biases of output projections, and compression in two shots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import variant_shots
from benchmarks.variant_parts import with_zero_biases
from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.decoder_layer import LayerWeights, Linear
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor, LayerOutcome
from intraslice_core.methods import METHODS
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.statistics_cache import DenseStates
from tests.intraslice_core.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
LENGTH = 16


def hidden_states(sequences: int = 12, width: int = 48) -> torch.Tensor:
    return torch.randn(sequences, LENGTH, width, generator=torch.Generator().manual_seed(0))


def smaller(plan: LayerPlan) -> LayerPlan:
    return plan.model_copy(
        update={
            "qk_pairs": plan.qk_pairs // 2,
            "v_head_dim": plan.v_head_dim // 2,
            "intermediate_size": plan.intermediate_size // 2,
        }
    )


def compressed(
    layers: DenseLayerReader,
    weights: LayerWeights,
    plan: LayerPlan,
    dense_states: DenseStates | None = None,
) -> tuple[LayerOutcome, HiddenStates]:
    """Compress the first layer by moments, with almost no damping."""
    hidden = hidden_states()
    states = HiddenStates(compressed=hidden, dense=hidden.clone())
    context = LayerContext(
        layer=0,
        settings=layers.settings(0),
        rotary=layers.rotary(0, LENGTH),
        method=replace(METHODS["intraslice_plus"], damping_own=(1e-9,), damping_correction=(1e-9,)),
        batch_size=4,
        device=CPU,
        stored_dtype=torch.float32,
        before_batch=lambda _: None,
        dense_states=dense_states,
    )
    return LayerCompressor(weights, plan, states, context).run(), states


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_zero_biases_change_nothing_and_are_fitted_by_the_refit(variant: str, tmp_path: Path):
    directory = tiny_checkpoint(tmp_path / "dense", variant)
    with CheckpointReader(directory) as reader, torch.no_grad():
        layers = DenseLayerReader(reader, CPU, torch.float32)
        plan = smaller(reader.family.geometry(reader.config).dense_layer())
        dense = layers.weights(0)
        biased = with_zero_biases(dense)
        rotary, settings = layers.rotary(0, LENGTH), layers.settings(0)
        before = hidden_states()
        outputs = [
            decoder_layer.forward(before, weights, settings, rotary) for weights in (dense, biased)
        ]
        assert torch.equal(*outputs)
        plain, _ = compressed(layers, dense, plan)
        fitted, states = compressed(layers, biased, plan)
    assert fitted.mlp.relative_error is not None
    assert plain.mlp.relative_error is not None
    assert fitted.mlp.relative_error < plain.mlp.relative_error
    bias = fitted.weights.mlp_output.bias
    assert bias is not None
    assert bias.abs().max() > 1e-3
    assert states.dense is not None
    if variant == "llama":  # an output norm makes the regression a weighted one
        mean = (states.dense - states.compressed).mean((0, 1))
        assert mean.abs().max() < 1e-3 * states.dense.abs().mean()


def test_a_layer_with_biases_keeps_them():
    bias = torch.ones(4)
    output = Linear(weight=torch.zeros(4, 2), bias=bias)
    empty = Linear(weight=torch.zeros(2, 4))
    weights = LayerWeights(
        num_key_value_heads=1,
        input_norm=None,
        query=empty,
        key=empty,
        value=empty,
        attention_output=output,
        mlp_norm=None,
        gate=None,
        up=empty,
        mlp_output=Linear(weight=torch.zeros(4, 2)),
    )
    assert with_zero_biases(weights).attention_output.bias is bias
    assert torch.equal(with_zero_biases(weights).mlp_output.bias, torch.zeros(4))


def test_both_shots_remove_the_same_fraction():
    first = variant_shots.first_ratio(0.3)
    assert first == pytest.approx(0.1633, abs=1e-4)
    rest = variant_shots.remaining_ratio(0.3, 1000, round(1000 * (1 - first)))
    assert rest == pytest.approx(first, abs=1e-3)
    assert (1 - rest) * round(1000 * (1 - first)) == pytest.approx(700)


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_the_second_shot_reads_the_first_and_targets_the_dense_model(variant: str, tmp_path: Path):
    directory = tiny_checkpoint(tmp_path / "dense", variant)
    with CheckpointReader(directory) as reader, torch.no_grad():
        layers = DenseLayerReader(reader, CPU, torch.float32)
        plan = smaller(reader.family.geometry(reader.config).dense_layer())
        outcome, after_first = compressed(layers, layers.weights(0), plan)
        sliced = [outcome.weights] * layers.num_layers
        plans = ModelPlan(layers=(plan,) * layers.num_layers)
        once = tmp_path / "once"
        variant_shots.save_compressed(reader, plans, sliced, once, torch.float32)
        target = variant_shots.DenseTarget(layers=layers, batch_size=5)
        with CheckpointReader(once) as reader_of_once:
            first = DenseLayerReader(reader_of_once, CPU, torch.float32)
            rotary, settings = first.rotary(0, LENGTH), first.settings(0)
            read = decoder_layer.forward(hidden_states(), first.weights(0), settings, rotary)
            torch.testing.assert_close(read, after_first.compressed, rtol=1e-4, atol=1e-4)
            _, states = compressed(first, first.weights(0), plan, target)
            _, own = compressed(first, first.weights(0), plan)
        expected = decoder_layer.forward(
            hidden_states(), layers.weights(0), layers.settings(0), rotary
        )
    assert states.dense is not None
    assert own.dense is not None
    torch.testing.assert_close(states.dense, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(own.dense, expected, atol=1e-3)
