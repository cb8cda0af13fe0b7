"""FLAP against an oracle with masks at full size, and on planted constants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core.config import CompressionConfig
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    calibration,
    loaded,
    logits,
    other_tokens,
    spread,
    unit_scores,
)
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_llama,
    tiny_model,
)

Unit = tuple[float, str, int, int]
"""Score, module, layer and number within the module."""


def standardised(scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [(score - mean) / deviation for score in scores]


def published_scores(inputs: Tensor, output: Tensor) -> list[float]:
    """Return `Var(z_j) · ‖W_j‖²` over tokens, one input at a time."""
    rows = inputs.flatten(0, 1)
    scores = []
    for column in range(rows.shape[1]):
        values = rows[:, column]
        variance = float(((values - values.mean()) ** 2).mean())
        scores.append(variance * float((output[column] ** 2).sum()))
    return scores


def units_of(masked: Masked, inputs: dict[tuple[int, str], Tensor]) -> list[Unit]:
    """Return all heads' units and neurons with their standardised scores, lowest first."""
    units: list[Unit] = []
    for layer in range(len(masked.layers)):
        squared = [
            score**2
            for score in published_scores(
                inputs[layer, "attention"], masked.output(layer, "attention")
            )
        ]
        by_input = standardised(squared)
        width = len(by_input) // masked.heads
        by_head = [
            sum(by_input[head * width : (head + 1) * width]) / width for head in range(masked.heads)
        ]
        units += [
            (score, "attention", layer, number)
            for number, score in enumerate(unit_scores(masked, by_head))
        ]
        neurons = published_scores(inputs[layer, "mlp"], masked.output(layer, "mlp"))
        units += [
            (score, "mlp", layer, number) for number, score in enumerate(standardised(neurons))
        ]
    return sorted(units)


def masked_by_threshold(masked: Masked, removed: list[Unit], tokens: Tensor) -> None:
    """Mask the units and add the mean contributions of their inputs."""
    inputs = masked.inputs(tokens)
    for layer in range(len(masked.layers)):
        width = inputs[layer, "attention"].shape[-1]
        heads = torch.ones(masked.heads if masked.groups == 1 else masked.groups)
        neurons = torch.ones(inputs[layer, "mlp"].shape[-1])
        for _, module, where, number in removed:
            if where == layer:
                (heads if module == "attention" else neurons)[number] = 0.0
        masks = {"attention": spread(masked, heads, width), "mlp": neurons}
        for module, mask in masks.items():
            mean = inputs[layer, module].flatten(0, 1).mean(0)
            bias = ((1.0 - mask).double() * mean) @ masked.output(layer, module)
            getattr(masked, f"{module}_bias")[layer] = bias.float()
            getattr(masked, module)[layer] = mask


def parameters(report: CompressionReport, masked: Masked, unit: Unit) -> int:
    geometry = report.geometry
    if unit[1] == "mlp":
        return geometry.mlp_projections * geometry.hidden_size
    if masked.groups == 1:  # its rows of q and its columns of o
        return 2 * geometry.head_dim * geometry.hidden_size
    return geometry.dense_layer().attention_parameters(geometry) // masked.groups


@pytest.mark.parametrize("variant", [*FAMILY_VARIANTS, "one KV head", "multi-head"])
def test_result_is_the_dense_model_under_one_threshold_with_biases(
    tmp_path: Path, variant: str
) -> None:
    groups = {"one KV head": 1, "multi-head": 4}.get(variant)
    if groups is None:
        dense = tiny_checkpoint(tmp_path / "dense", variant)
    else:
        dense = tiny_llama(tmp_path / "dense", num_key_value_heads=groups)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()
    settings = {"method": "flap", "calibration": CALIBRATION, "round_to": 1}
    geometry = compress_unverified(
        dense, tmp_path / "probe", CompressionConfig(ratio=0.0, **settings)
    )
    units = units_of(masked, masked.inputs(tokens))
    total = geometry.compressible_before
    removed: list[Unit] = []
    removed_parameters = 0
    for unit in units:
        if removed_parameters >= 0.25 * total:
            break
        removed.append(unit)
        removed_parameters += parameters(geometry, masked, unit)
    config = CompressionConfig(ratio=removed_parameters / total, **settings)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.compressible_after == total - removed_parameters
    assert report.allocation is not None
    assert report.allocation.allocator == "global_threshold"
    for layer, plan in enumerate(report.plan.layers):
        lost = [unit for unit in removed if unit[2] == layer]
        heads = sum(unit[1] == "attention" for unit in lost)
        per_unit = masked.heads // (masked.heads if masked.groups == 1 else masked.groups)
        assert plan.num_attention_heads == masked.heads - per_unit * heads
        width = report.geometry.intermediate_size
        assert plan.intermediate_size == width - (len(lost) - heads)
    if report.geometry.qk_norm_across_heads and any(unit[1] == "attention" for unit in removed):
        return  # the norm's weights make up for removed heads, which masks do not
    masked_by_threshold(masked, removed, tokens)
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )


def with_constant_neurons(directory: Path, count: int) -> Path:
    """Save a model with neurons that are constant, but neither small nor read by small weights."""
    model = tiny_model(mlp_bias=True, attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[:count] = 0.0
                projection.bias[:count] = 2.0
            layer.mlp.down_proj.weight[:, :count] *= 3.0
    return save_checkpoint(model, directory)


def test_planted_constants_are_removed_first_and_become_biases(tmp_path: Path) -> None:
    dense = with_constant_neurons(tmp_path / "dense", count=16)
    probe = CompressionConfig(ratio=0.0, method="flap", calibration=CALIBRATION)
    before = compress_unverified(dense, tmp_path / "probe", probe)
    ratio = 3 * 16 * 3 * 48 / before.compressible_before
    # One threshold may also take others: standardised scores are relative to their module.
    settings = {
        "ratio": ratio,
        "round_to": 2,
        "calibration": CALIBRATION,
        "allocation": "uniform",
    }
    expected = logits(loaded(dense), other_tokens())
    for target in ("research", "adaptive"):
        config = CompressionConfig(method="flap", target=target, **settings)
        report = compress_unverified(dense, tmp_path / target, config)
        assert [layer.intermediate_size for layer in report.plan.layers] == [48, 48, 48]
        actual = logits(loaded(tmp_path / target), other_tokens())
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
    # The neurons are neither small nor read by small weights: others remove what matters.
    config = CompressionConfig(method="wanda_sp", target="adaptive", **settings)
    compress_unverified(dense, tmp_path / "other", config)
    other = logits(loaded(tmp_path / "other"), other_tokens())
    assert float((other - expected).abs().max()) > 0.1


def test_biases_are_written_and_counted_where_the_dense_model_has_none(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(method="flap", ratio=0.3, calibration=CALIBRATION)
    report = compress_unverified(dense, tmp_path / "out", config)
    model = loaded(tmp_path / "out")
    assert sum(part.numel() for part in model.parameters()) == report.params_after
    for layer in model.model.layers:
        assert layer.self_attn.o_proj.bias is not None
        assert layer.mlp.down_proj.bias is not None
        assert layer.mlp.up_proj.bias is None
    biases = 3 * 2 * 48
    removed = report.compressible_before - report.compressible_after
    assert report.params_after == report.params_before - removed + biases


def test_a_result_is_an_input_of_other_methods(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(method="flap", ratio=0.3, calibration=CALIBRATION)
    first = compress_unverified(dense, tmp_path / "once", config)
    again = CompressionConfig(method="magnitude", ratio=0.0, calibration=CALIBRATION)
    second = compress_unverified(tmp_path / "once", tmp_path / "twice", again)
    assert second.params_before == first.params_after == second.params_after
    torch.testing.assert_close(
        logits(loaded(tmp_path / "twice"), other_tokens()),
        logits(loaded(tmp_path / "once"), other_tokens()),
        rtol=0,
        atol=1e-4,
    )
    with pytest.raises(ConfigurationError, match="flap does not take a model that was compressed"):
        compress_unverified(tmp_path / "once", tmp_path / "thrice", config)


def test_budgets_below_whole_heads_are_rejected_before_the_work(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(method="flap", ratio=0.85, calibration=CALIBRATION)
    with pytest.raises(BudgetOutOfReachError, match="whole heads and neurons leave") as caught:
        compress_unverified(dense, tmp_path / "out", config)
    limit = float(str(caught.value.hint).split("ratio of at most ")[1].split(")")[0])
    config = CompressionConfig(method="flap", ratio=limit, calibration=CALIBRATION)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(limit, abs=0.005)
