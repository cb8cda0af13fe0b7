"""Shapes from measured sensitivity, trial cuts and Fisher scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import (
    MAX_CHECK_SEQUENCES,
    MAX_JUDGED_TOKENS,
    MIN_GRADIENT_SEQUENCES,
    MIN_SENSITIVITY_TOKENS,
    AllocationCandidate,
    CalibrationSplit,
    fisher_shapes,
    lagrangian_shapes,
    measure_sensitivity,
    trial_rank_correlation,
    trial_scales,
)
from intraslice_core.allocation.search import CANDIDATES
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.sensitivity.measurement import ModelSensitivity, measure_layers
from intraslice_core.sensitivity.sensitivity_file import load_sensitivity, save_sensitivity
from intraslice_core.sensitivity.trial_cuts import TrialCut
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_family_model,
    tiny_llama,
)

CPU = torch.device("cpu")


def draw(sequences: int = 10, length: int = 16) -> Tensor:
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(0))


def silent(_done: float) -> None:
    """Ignore progress."""


def sensitivity_of(directory: Path, batch_size: int = 4, sequences: int = 10) -> ModelSensitivity:
    with CheckpointReader(directory) as reader, torch.inference_mode():
        return measure_sensitivity(
            DenseLayerReader(reader, CPU, torch.float32),
            CalibrationSplit.of(draw(sequences)),
            batch_size=batch_size,
            before_batch=silent,
        )


def trial(layer: int, predicted: float, measured: float, **changes) -> TrialCut:
    facts = {"module": "mlp", "cut": 0.25, **changes}
    return TrialCut(layer=layer, predicted=predicted, measured=measured, **facts)


def test_check_set_is_disjoint_from_the_other_sequences():
    tokens = torch.arange(200).unsqueeze(1).expand(-1, 1024)
    split = CalibrationSplit.of(tokens)
    assert split.sensitivity[:, 0].tolist() == list(range(25))
    assert split.metric[:, 0].tolist() == list(range(12))
    assert split.gradients[:, 0].tolist() == list(range(25))
    assert split.trial_fit[:, 0].tolist() == [0, 1]
    assert split.check[:, 0].tolist() == list(range(200 - MAX_CHECK_SEQUENCES, 200))
    assert len(CalibrationSplit.of(tokens[:1]).sensitivity) == 1


@pytest.mark.parametrize("kinds", [2, 3])
def test_plans_are_judged_on_as_many_sequences_of_every_kind(kinds):
    # Kinds are interleaved, and the last one is rare.
    sources = torch.tensor([kinds - 1 if row % 6 == 5 else row % (kinds - 1) for row in range(48)])
    tokens = torch.arange(48).unsqueeze(1).expand(-1, 8)
    split = CalibrationSplit.of(tokens, sources)
    assert torch.equal(sources[split.judged[:, 0]], split.judged_kinds)
    counts = split.judged_kinds.bincount(minlength=kinds)
    assert counts.sum() == len(split.check) == 6
    assert counts.max() - counts.min() == 0
    held_out = {*split.judged[:, 0].tolist(), *split.check[:, 0].tolist()}
    assert split.check[:, 0].tolist() == list(range(42, 48))
    for part in (split.sensitivity, split.metric, split.gradients, split.trial_fit):
        assert held_out.isdisjoint(part[:, 0].tolist())


def test_plans_are_judged_on_the_last_sequences_where_kinds_outnumber_them():
    tokens = torch.arange(9).unsqueeze(1).expand(-1, 8)
    for sources in (torch.arange(9), torch.zeros(9, dtype=torch.int64)):
        split = CalibrationSplit.of(tokens, sources)
        assert split.judged[:, 0].tolist() == split.check[:, 0].tolist() == [8]
        assert split.sensitivity[:, 0].tolist() == list(range(8))


def test_sequences_are_few_where_they_are_long():
    tokens = torch.arange(24).unsqueeze(1).expand(-1, 512)
    split = CalibrationSplit.of(tokens)
    assert len(split.sensitivity) == 21
    assert (split.metric.numel(), split.trial_fit.numel()) == (8192, 2048)
    assert len(split.gradients) == MIN_GRADIENT_SEQUENCES
    assert torch.equal(split.judged, split.check)
    more = CalibrationSplit.of(tokens.repeat(3, 2))
    assert more.judged.shape == (8, MAX_JUDGED_TOKENS // 8)
    assert more.sensitivity.numel() == MIN_SENSITIVITY_TOKENS
    short = CalibrationSplit.of(tokens[:, :32])
    assert len(short.sensitivity) == len(short.metric) == len(short.trial_fit) == 21
    assert torch.equal(short.judged, short.check)


def test_scales_are_interpolated_between_layers_with_trials():
    trials = [trial(0, 0.1, 0.1), trial(0, 0.3, 0.3), trial(4, 0.1, 0.4), trial(8, 0.1, 0.8)]
    scales = trial_scales(trials, "mlp", 9)
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(4 ** (1 / 4))
    assert scales[8] == pytest.approx((4 * 8**3) ** (1 / 4))
    assert trial_scales(trials, "attention", 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("module", "predicted", "measured", "scale"),
    [
        ("mlp", 0.1, -0.5, 0.5),
        ("attention", 0.1, -0.5, 1.0),
        ("mlp", 0.1, 90.0, 8.0),
        ("mlp", 0.0, 0.2, 1.0),
    ],
)
def test_scales_are_bounded(module, predicted, measured, scale):
    trials = [trial(0, predicted, measured, module=module)]
    assert trial_scales(trials, module, 1) == [pytest.approx(scale)]


def test_rank_correlation_is_of_predictions_by_other_trials():
    cuts = [(layer, cut) for layer in range(7) for cut in (0.25, 0.5)]
    good = [trial(layer, cut, (layer + 1) * cut, cut=cut) for layer, cut in cuts]
    assert trial_rank_correlation(good) == pytest.approx(1.0, abs=0.02)
    bad = [trial(layer, cut, 1 - (layer + 1) * cut, cut=cut) for layer, cut in cuts]
    assert trial_rank_correlation(bad) < 0.5
    assert trial_rank_correlation(good[:11]) is None


@pytest.mark.parametrize("variant", sorted(FAMILY_VARIANTS))
def test_every_family_is_measured_and_allocated_within_its_budget(variant, tmp_path):
    directory = save_checkpoint(tiny_family_model(variant), tmp_path / "dense")
    config = CompressionConfig(ratio=0.3, round_to=1)
    measured = sensitivity_of(directory)
    with CheckpointReader(directory) as reader:
        geometry = reader.family.geometry(reader.config)
    dense = geometry.dense_plan().parameters(geometry)
    scored = lagrangian_shapes(measured, geometry, round(0.7 * dense), config, CANDIDATES[-1])
    assert scored.plan.parameters(geometry) == pytest.approx(0.7 * dense, rel=0.005)
    assert scored.predicted_loss > 0
    for layer in measured.layers:
        for losses in (layer.pair_losses, layer.value_losses, layer.width_losses):
            assert losses[-1] == 0.0
            assert (losses.diff() <= 1e-12).all()
        assert sorted(layer.neuron_order.tolist()) == list(range(geometry.intermediate_size))
        assert layer.neurons(5).tolist() == sorted(layer.neuron_order[-5:].tolist())
    modules = {(trial_cut.module, trial_cut.cut) for trial_cut in measured.trials}
    assert modules == {(m, cut) for m in ("attention", "mlp") for cut in (0.25, 0.5)}


def candidate_plan(
    measured: ModelSensitivity, directory: Path, **factors: Any
) -> tuple[ScoredPlan, list[int]]:
    """Return the plan of a candidate at 30 %, by default without heads, and its MLP widths."""
    with CheckpointReader(directory) as reader:
        geometry = reader.family.geometry(reader.config)
    budget = round(0.7 * geometry.dense_plan().parameters(geometry))
    candidate = AllocationCandidate(**{"heads": False, "penalty": 1.0, **factors})
    config = CompressionConfig(ratio=0.3, round_to=1)
    scored = lagrangian_shapes(measured, geometry, budget, config, candidate)
    return scored, [layer.intermediate_size for layer in scored.plan.layers]


def test_the_head_penalty_keeps_more_heads(tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    measured = sensitivity_of(directory)
    heads, penalized = (
        [
            layer.num_attention_heads
            for layer in candidate_plan(
                measured, directory, heads=True, penalty=0.01, head_penalty=factor
            )[0].plan.layers
        ]
        for factor in (1.0, 1e6)
    )
    assert min(heads) < max(heads)
    assert min(penalized) == max(penalized) == max(heads)


def test_a_candidate_without_trial_cuts_ignores_them(tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    trials = (trial(0, 0.1, 0.8), trial(2, 0.1, 0.05))
    measured = replace(sensitivity_of(directory), trials=trials)
    _, scaled = candidate_plan(measured, directory)
    _, ignoring = candidate_plan(measured, directory, trial_power=0.0)
    _, unmeasured = candidate_plan(replace(measured, trials=()), directory)
    assert ignoring == unmeasured != scaled


def test_trial_cuts_measure_a_divergence(tmp_path):
    trials = sensitivity_of(tiny_llama(tmp_path / "dense")).trials
    assert all(cut.measured > 0.0 for cut in trials)
    pairs = {(cut.layer, cut.module): {} for cut in trials}
    for cut in trials:
        pairs[cut.layer, cut.module][cut.cut] = cut.measured
    assert all(measured[0.5] > measured[0.25] for measured in pairs.values())


@pytest.mark.parametrize("rotated", [False, True])
def test_fisher_allocator_meets_the_budget(rotated, tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    with CheckpointReader(directory) as reader, torch.inference_mode():
        geometry = reader.family.geometry(reader.config)
        dense = geometry.dense_plan().parameters(geometry)
        scored = fisher_shapes(
            DenseLayerReader(reader, CPU, torch.float32),
            CalibrationSplit.of(draw()),
            geometry,
            round(0.6 * dense),
            CompressionConfig(ratio=0.4, round_to=2, method="intraslice"),
            rotated=rotated,
            before_batch=silent,
        )
    assert scored.plan.parameters(geometry) == pytest.approx(0.6 * dense, rel=0.005)
    assert all(layer.v_head_dim == layer.qk_head_dim for layer in scored.plan.layers)


def test_dimensions_that_do_nothing_are_predicted_to_cost_nothing(tmp_path):
    model = tiny_family_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 40:] = 0.0
            layer.self_attn.v_proj.weight.view(2, 20, -1)[:, 12:] = 0.0
            layer.self_attn.k_proj.weight.view(2, 2, 10, -1)[:, :, 7:] = 0.0
    measured = sensitivity_of(save_checkpoint(model, tmp_path / "dense"))
    for layer in measured.layers:
        total = float(layer.width_losses[0] + layer.value_losses[0] + layer.pair_losses[0])
        assert float(layer.width_losses[40]) < 1e-9 * total
        assert float(layer.value_losses[12]) < 1e-4 * total
        assert float(layer.pair_losses[7]) < 1e-3 * total  # not zero because of the damping
        assert layer.neurons(40).tolist() == list(range(40))
        assert layer.pairs(7).kept.tolist() == [list(range(7))] * 2


def test_batch_size_does_not_change_the_sensitivity(tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    large = sensitivity_of(directory, batch_size=8)
    small = sensitivity_of(directory, batch_size=3)
    for layer, other in zip(large.layers, small.layers, strict=True):
        torch.testing.assert_close(layer.pair_moment, other.pair_moment, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(layer.width_losses, other.width_losses, rtol=1e-2, atol=1e-5)


def test_saved_sensitivity_is_loaded_unchanged(tmp_path):
    measured = sensitivity_of(tiny_llama(tmp_path / "dense"))
    file = tmp_path / "cache" / "sensitivity.safetensors"
    assert load_sensitivity(file) is None
    save_sensitivity(file, measured)
    loaded = load_sensitivity(file)
    assert loaded is not None
    assert loaded.trials == measured.trials
    for layer, other in zip(measured.layers, loaded.layers, strict=True):
        for name, part in layer.tensors().items():
            assert torch.equal(part, getattr(other, name)), name
    file.write_bytes(file.read_bytes()[:100])
    assert load_sensitivity(file) is None


def test_without_gradients_outputs_are_weighed_by_the_mean_energy(tmp_path):
    directory = tiny_llama(tmp_path / "dense")
    split = CalibrationSplit.of(draw())
    with CheckpointReader(directory) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, CPU, torch.float32)
        without = measure_layers(
            layers, split.sensitivity, split.check, None, batch_size=4, before_batch=silent
        )
        files = GradientFiles(directory=tmp_path / "gradients")
        loss_gradients(layers, split.gradients, batch_size=4, files=files, before_batch=silent)
        with_them = measure_layers(
            layers, split.sensitivity, split.check, files, batch_size=4, before_batch=silent
        )
    for layer, other in zip(without.layers, with_them.layers, strict=True):
        assert (layer.width_losses[:-1] > 0).all()
        assert not torch.allclose(layer.width_losses, other.width_losses)


@pytest.mark.parametrize("curve", ["width_losses", "value_losses"])
def test_a_dimension_that_another_one_repeats_still_costs_something(tmp_path, monkeypatch, curve):
    """Its correlation with the other one may be that of the calibration text only."""
    model = tiny_family_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            values = layer.self_attn.v_proj.weight.unflatten(0, (-1, layer.self_attn.head_dim))
            values[:, 1] = values[:, 0]  # of every KV head
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[1] = projection.weight[0]
    directory = save_checkpoint(model, tmp_path / "dense")
    shrunken = sensitivity_of(directory)
    monkeypatch.setattr("intraslice_core.sensitivity.measurement.CHOICE_SHRINKAGE", 0.0)
    for layer, plain in zip(shrunken.layers, sensitivity_of(directory).layers, strict=True):
        assert getattr(layer, curve)[-2] > 10 * getattr(plain, curve)[-2]
