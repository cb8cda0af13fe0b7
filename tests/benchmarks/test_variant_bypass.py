"""A bypass of the MLP changes nothing until it is fitted, and replaces what neurons do linearly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.variant_bypass import (
    BypassCompressor,
    bypasses,
    exchanged,
    exchanged_neurons,
    has_bypass,
    with_bypass,
)
from benchmarks.variant_calibration import HeldLayers
from intraslice_core import decoder_layer
from intraslice_core.allocation.estimators import CalibrationSplit, measure_sensitivity
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.decoder_layer import LayerSettings
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelPlan
from tests.intraslice_core.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 250, (8, 32), generator=torch.Generator().manual_seed(0))


class LinearLayers(HeldLayers):
    """Layers whose MLPs have no nonlinearity."""

    def settings(self, layer: int) -> LayerSettings:
        return replace(super().settings(layer), activation=lambda inner: inner)


def test_a_bypass_of_zeros_changes_nothing(tmp_path: Path):
    directory = tiny_checkpoint(tmp_path / "dense", "llama")
    with CheckpointReader(directory) as reader, bypasses(), torch.no_grad():
        layers = HeldLayers(reader, CPU, torch.float32)
        weights, settings, rotary = layers.weights(0), layers.settings(0), layers.rotary(0, 32)
        hidden = layers.embed(TOKENS)
        plain = decoder_layer.forward(hidden, weights, settings, rotary)
        wide = with_bypass(weights)
        assert has_bypass(wide)
        assert not has_bypass(weights)
        torch.testing.assert_close(decoder_layer.forward(hidden, wide, settings, rotary), plain)
        assert exchanged_neurons(wide) * 3 * 48 >= 48 * 48


def test_a_bypass_replaces_the_neurons_of_a_linear_mlp(tmp_path: Path):
    directory = tiny_checkpoint(tmp_path / "dense", "starcoder2")
    with CheckpointReader(directory) as reader, bypasses(), torch.no_grad():
        layers = LinearLayers(reader, CPU, torch.float32)
        geometry = reader.family.geometry(reader.config)
        split = CalibrationSplit.of(TOKENS)
        measured = measure_sensitivity(layers, split, batch_size=4, before_batch=lambda _: None)
        half = geometry.dense_layer().model_copy(update={"intermediate_size": 32})
        plan = ModelPlan(layers=(half,) * geometry.num_hidden_layers)
        wide, plans, choices = exchanged(layers, plan, measured.layers, split, 4)
        assert all(map(has_bypass, wide.held))
        assert plans.parameters(geometry) + len(wide.held) * 48**2 == plan.parameters(geometry)
        errors = []
        for model, shapes, sensitivity in (
            (layers, plan, measured.layers),
            (wide, plans, choices),
        ):
            hidden = layers.embed(TOKENS)
            states = HiddenStates(compressed=hidden, dense=hidden.clone())
            context = LayerContext(
                layer=0,
                settings=layers.settings(0),
                rotary=layers.rotary(0, 32),
                method=METHODS["intraslice_plus"],
                batch_size=4,
                device=CPU,
                stored_dtype=torch.float32,
                before_batch=lambda _: None,
                sensitivity=sensitivity[0],
            )
            outcome = BypassCompressor(model.weights(0), shapes.layers[0], states, context).run()
            assert len(outcome.weights.up.weight) == shapes.layers[0].intermediate_size
            assert states.dense is not None
            error = (states.dense - states.compressed).square().sum()
            errors.append(float(error / states.dense.square().sum()))
    assert errors[1] < 0.01 * errors[0]
