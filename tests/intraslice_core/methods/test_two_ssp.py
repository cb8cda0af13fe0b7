"""2SSP against an oracle with masks at full size, and on planted idle attentions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intraslice_core.allocation.attention_removal import AttentionRemoval
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.two_stage import removed_attentions, two_stage_plan
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import FREE, ShapeConstraint
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    calibration,
    kept_mask,
    loaded,
    logits,
    loss,
    other_tokens,
)
from tests.intraslice_core.smollm2 import SMOLLM2
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_model,
)


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_result_is_the_dense_model_with_masked_neurons_and_the_best_attentions(
    tmp_path: Path, variant: str
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    config = CompressionConfig(method="2ssp", ratio=0.5, calibration=CALIBRATION, round_to=1)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(0.5, abs=0.0025)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()
    inputs = masked.inputs(tokens)
    for layer, plan in enumerate(report.plan.layers):
        activations = inputs[layer, "mlp"]
        norms = [
            sum(float(sequence[:, neuron].norm()) for sequence in activations) / len(activations)
            for neuron in range(activations.shape[-1])
        ]
        masked.mlp[layer] = kept_mask(norms, plan.intermediate_size)
    layers = range(len(masked.layers))
    lost = {layer for layer in layers if report.plan.layers[layer].num_attention_heads == 0}
    checked = CalibrationSplit.of(tokens).judged
    for _ in lost:
        losses = {}
        for layer in set(layers) - masked.removed:
            masked.removed.add(layer)
            losses[layer] = loss(masked.model, checked)
            masked.removed.discard(layer)
        masked.removed.add(min(losses, key=lambda layer: losses[layer]))
    assert masked.removed == lost
    assert lost
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )


@pytest.mark.parametrize("target", ["research", "adaptive"])
def test_planted_silent_neurons_are_removed_without_loss(tmp_path: Path, target: str) -> None:
    model = tiny_model(intermediate_size=256)
    with torch.no_grad():
        for layer in model.model.layers:
            # Silent, but read by the largest weights, which the norm does not look at.
            layer.mlp.up_proj.weight[::2] = 0.0
            layer.mlp.down_proj.weight[:, ::2] *= 100.0
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(method="2ssp", target=target, ratio=0.4, calibration=CALIBRATION)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert {layer.num_attention_heads for layer in report.plan.layers} == {4}
    assert {layer.intermediate_size for layer in report.plan.layers} == {128}
    actual = logits(loaded(tmp_path / "out"), other_tokens())
    torch.testing.assert_close(actual, logits(model, other_tokens()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("fixed", "expected"), [((), (1, 3)), ((1,), (2, 3))])
def test_planted_idle_attentions_are_removed_unless_their_layer_keeps_it(
    tmp_path: Path, fixed: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    model = tiny_model(num_hidden_layers=5)
    with torch.no_grad():
        model.model.norm.weight *= 10.0  # the model is sure of the text that it writes
        for idle, factor in ((1, 0.0), (2, 0.001), (3, 0.0)):
            model.model.layers[idle].self_attn.o_proj.weight *= factor
    tokens = torch.randint(3, 250, (4, 1), generator=torch.Generator().manual_seed(3))
    for _ in range(23):
        tokens = torch.cat((tokens, logits(model, tokens)[:, -1:].argmax(-1)), dim=1)
    dense = save_checkpoint(model, tmp_path / "dense")
    with CheckpointReader(dense) as reader, torch.inference_mode():
        search = AttentionRemoval(
            layers=DenseLayerReader(reader, torch.device("cpu"), torch.float32),
            tokens=tokens,
            neurons=(torch.rand(64),) * 5,
            widths=(64,) * 5,
            batch_size=2,
            stored_dtype=torch.float32,
            fixed=frozenset(fixed),
        )
        reported: list[float] = []
        assert search.least_needed(2, reported.append) == expected
    assert reported == sorted(reported)
    assert 0.0 <= reported[0] < reported[-1] < 1.0


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.2, 1), (0.3, 3), (0.5, 8), (0.7, 15)])
def test_the_number_of_attentions_is_that_of_equation_5(ratio: float, count: int) -> None:
    # A layer of SmolLM2-135M: an MLP has three times the parameters of an attention.
    assert removed_attentions(SMOLLM2, ratio, 8, FREE) == count
    assert count == round(30 * ratio ** (3 / 1.5))
    plan = two_stage_plan(SMOLLM2, ratio, 8, FREE)
    assert sum(layer.num_attention_heads == 0 for layer in plan.layers) == count
    budget = (1.0 - ratio) * SMOLLM2.dense_plan().parameters(SMOLLM2)
    assert plan.parameters(SMOLLM2) == pytest.approx(budget, rel=0.0005)


def test_the_nearest_number_is_taken_where_the_mlps_cannot_complete_the_budget() -> None:
    heavy = SMOLLM2.model_copy(update={"intermediate_size": 256})
    assert round(30 * 0.3 ** (0.5 / 1.5)) == 20  # two thirds of the parameters, more than 30 %
    count = removed_attentions(heavy, 0.3, 8, FREE)
    assert count == 13
    plan = two_stage_plan(heavy, 0.3, 8, FREE)
    assert plan.removed_fraction(heavy) == pytest.approx(0.3, abs=0.0035)
    sparing = ShapeConstraint(attention_stays_in=frozenset(range(20)))
    with pytest.raises(BudgetOutOfReachError, match="2ssp leaves at least"):
        removed_attentions(heavy, 0.6, 8, sparing)
