"""Wanda-sp against an oracle with masks at full size, and on planted weak units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core.config import CompressionConfig
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    calibration,
    kept_mask,
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


def published_scores(inputs: Tensor, output: Tensor) -> list[float]:
    """Return `mean_i |W_ij| · √(Σ_t z_tj²)`, one input at a time."""
    rows = inputs.flatten(0, 1)
    return [
        float(output[column].abs().mean()) * float((rows[:, column] ** 2).sum()) ** 0.5
        for column in range(rows.shape[1])
    ]


@pytest.mark.parametrize("variant", [*FAMILY_VARIANTS, "one KV head", "multi-head"])
def test_result_is_the_dense_model_with_the_same_ratio_masked_layer_by_layer(
    tmp_path: Path, variant: str
) -> None:
    groups = {"one KV head": 1, "multi-head": 4}.get(variant)
    if groups is None:
        dense = tiny_checkpoint(tmp_path / "dense", variant)
    else:
        dense = tiny_llama(tmp_path / "dense", num_key_value_heads=groups)
    ratio = 0.5
    config = CompressionConfig(method="wanda_sp", ratio=ratio, calibration=CALIBRATION, round_to=1)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(ratio, abs=0.005 * 0.5)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()
    for layer, plan in enumerate(report.plan.layers):
        inputs = masked.inputs(tokens)  # of this layer, behind those that are masked
        by_input = published_scores(inputs[layer, "attention"], masked.output(layer, "attention"))
        width = len(by_input) // masked.heads
        by_head = [sum(by_input[head * width : (head + 1) * width]) for head in range(masked.heads)]
        units = unit_scores(masked, by_head)
        keep = len(units) - int(len(units) * ratio)
        assert plan.num_attention_heads == keep * masked.heads // len(units)
        neurons = published_scores(inputs[layer, "mlp"], masked.output(layer, "mlp"))
        masked.attention[layer] = spread(masked, kept_mask(units, keep), len(by_input))
        masked.mlp[layer] = kept_mask(neurons, plan.intermediate_size)
    widths = [plan.intermediate_size for plan in report.plan.layers]
    assert max(widths) - min(widths) <= 1
    if report.geometry.qk_norm_across_heads:
        return  # the norm's weights make up for removed heads, which masks do not
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )


def test_planted_weak_heads_and_neurons_are_removed_without_loss(tmp_path: Path) -> None:
    model = tiny_model(num_key_value_heads=4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[16:32] = 0.0  # head 1 outputs zero
            layer.self_attn.o_proj.weight[:, 48:] = 0.0  # head 3 is not read
            layer.mlp.up_proj.weight[::4] = 0.0
            layer.mlp.down_proj.weight[:, 1::4] = 0.0
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(method="wanda_sp", ratio=0.5, calibration=CALIBRATION, round_to=2)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert {layer.num_attention_heads for layer in report.plan.layers} == {2}
    assert {layer.intermediate_size for layer in report.plan.layers} == {32}
    actual = logits(loaded(tmp_path / "out"), other_tokens())
    torch.testing.assert_close(actual, logits(model, other_tokens()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "ratio", "heads"), [("qwen3", 0.5, {2}), ("qwen3", 0.3, {4}), ("llama", 0.3, {4})]
)
def test_stock_results_have_one_shape_with_fewer_heads_where_the_class_takes_them(
    tmp_path: Path, variant: str, ratio: float, heads: set[int]
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    config = CompressionConfig(
        method="wanda_sp", target="stock", ratio=ratio, calibration=CALIBRATION, round_to=1
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    assert len(set(report.plan.layers)) == 1
    assert {layer.num_attention_heads for layer in report.plan.layers} == heads
    assert report.removed_fraction == pytest.approx(ratio, abs=0.02)
    assert loaded(tmp_path / "out").config.model_type == loaded(dense).config.model_type
