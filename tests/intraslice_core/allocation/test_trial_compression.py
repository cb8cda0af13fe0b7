"""Trial compressions of several plans together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from intraslice_core.allocation.estimators import CalibrationSplit, measure_sensitivity
from intraslice_core.allocation.search import TrialCompression
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.errors import NumericalError
from intraslice_core.plan import ModelGeometry, ModelPlan
from tests.intraslice_core.tiny_models import tiny_llama

CPU = torch.device("cpu")


def silent(_done: float) -> None:
    """Ignore progress."""


def plan(geometry: ModelGeometry, *widths: int) -> ModelPlan:
    """Return a plan that cuts only MLPs, to these widths in the first layers."""
    layers = list(geometry.dense_plan().layers)
    for number, width in enumerate(widths):
        layers[number] = layers[number].model_copy(update={"intermediate_size": width})
    return ModelPlan(layers=tuple(layers))


def test_plans_tried_together_are_judged_as_alone(tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    tokens = torch.randint(3, 250, (16, 24), generator=torch.Generator().manual_seed(0))
    split = CalibrationSplit.of(tokens)
    with CheckpointReader(directory) as reader, torch.inference_mode():
        geometry = reader.family.geometry(reader.config)
        layers = DenseLayerReader(reader, CPU, torch.float32)
        measured = measure_sensitivity(layers, split, batch_size=8, before_batch=silent)
        trial = TrialCompression(
            layers=layers,
            fit=split.trial_fit,
            check=split.judged,
            kinds=split.judged_kinds,
            sensitivity=measured.layers,
            batch_size=8,
            device=CPU,
            stored_dtype=torch.float32,
        )
        width = geometry.intermediate_size
        plans = [plan(geometry), plan(geometry, width, width - 8), plan(geometry, width, 8)]
        fractions: list[float] = []
        nothing, little, much = trial.divergences(plans, fractions.append)
        (alone,) = trial.divergences(plans[1:2], silent)
        assert not nothing.tokens.any()
        assert 0.0 < little.score < much.score
        torch.testing.assert_close(little.tokens, alone.tokens)
        assert little.tokens.shape == (len(split.judged), 24)
        assert fractions == sorted(fractions)
        assert 0.9 < fractions[-1] <= 1.0

        broken = [replace(layer, neuron_order=layer.neuron_order) for layer in measured.layers]
        broken[1] = replace(broken[1], value_directions=broken[1].value_directions * torch.nan)
        cut = geometry.dense_layer().model_copy(update={"v_head_dim": 4})
        values = ModelPlan(layers=(cut,) * geometry.num_hidden_layers)
        with pytest.raises(NumericalError) as caught:
            replace(trial, sensitivity=broken).divergences([values], silent)
        assert caught.value.layer == 1
