"""TransAct against an oracle with masks at full size, shot by shot, and on planted weak units."""

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

SHOTS = 4


def lengths(inputs: Tensor) -> list[float]:
    """Return `√Σ_t a_tj²` of every input, (sequences, length, width)."""
    rows = inputs.flatten(0, 1)
    return [float((rows[:, column] ** 2).sum()) ** 0.5 for column in range(rows.shape[1])]


def head_scores(by_input: list[float], heads: int) -> list[float]:
    """Return the published score of each head, the mean plus 10 / head_dim times the largest."""
    width = len(by_input) // heads
    parts = [by_input[start : start + width] for start in range(0, len(by_input), width)]
    return [sum(part) / width + 10.0 / width * max(part) for part in parts]


def without_removed(scores: list[float], mask: Tensor) -> list[float]:
    return [score if left else -1.0 for score, left in zip(scores, mask.tolist(), strict=True)]


@pytest.mark.parametrize("variant", [*FAMILY_VARIANTS, "one KV head", "multi-head"])
def test_result_is_the_dense_model_masked_in_shots(tmp_path: Path, variant: str) -> None:
    groups = {"one KV head": 1, "multi-head": 4}.get(variant)
    if groups is None:
        dense = tiny_checkpoint(tmp_path / "dense", variant)
    else:
        dense = tiny_llama(tmp_path / "dense", num_key_value_heads=groups)
    config = CompressionConfig(method="transact", ratio=0.5, calibration=CALIBRATION, round_to=1)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(0.5, abs=0.0025)
    if report.geometry.qk_norm_across_heads:
        return  # the norm's weights make up for removed heads, which masks do not
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()
    units = masked.heads if masked.groups == 1 else masked.groups
    unit_masks = [torch.ones(units) for _ in report.plan.layers]
    neuron_masks = [torch.ones(report.geometry.intermediate_size) for _ in report.plan.layers]
    for remaining in range(SHOTS, 0, -1):
        inputs = masked.inputs(tokens)  # of the model as the shots before left it
        for layer, plan in enumerate(report.plan.layers):
            left = int(unit_masks[layer].sum())
            goal = plan.num_attention_heads * units // masked.heads
            by_input = lengths(inputs[layer, "attention"])
            scores = unit_scores(masked, head_scores(by_input, masked.heads))
            unit_masks[layer] = kept_mask(
                without_removed(scores, unit_masks[layer]), left - (left - goal) // remaining
            )
            left = int(neuron_masks[layer].sum())
            neuron_masks[layer] = kept_mask(
                without_removed(lengths(inputs[layer, "mlp"]), neuron_masks[layer]),
                left - (left - plan.intermediate_size) // remaining,
            )
        for layer in range(len(report.plan.layers)):
            width = inputs[layer, "attention"].shape[-1]
            masked.attention[layer] = spread(masked, unit_masks[layer], width)
            masked.mlp[layer] = neuron_masks[layer]
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )


def test_planted_silent_heads_and_neurons_are_removed_without_loss(tmp_path: Path) -> None:
    model = tiny_model(num_key_value_heads=4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[16:48] *= 1e-4  # heads 1 and 2 output almost nothing
            layer.mlp.up_proj.weight[::2] *= 1e-4
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(method="transact", ratio=0.5, calibration=CALIBRATION, round_to=2)
    report = compress_unverified(dense, tmp_path / "out", config)
    sizes = {(layer.num_attention_heads, layer.intermediate_size) for layer in report.plan.layers}
    assert sizes == {(2, 32)}
    actual = logits(loaded(tmp_path / "out"), other_tokens())
    torch.testing.assert_close(actual, logits(model, other_tokens()), rtol=0, atol=1e-2)


def test_a_head_with_one_strong_dimension_stays(tmp_path: Path) -> None:
    """The largest input weighs as much as the mean of ten inputs; wanda_sp has no such term."""
    model = tiny_model(num_key_value_heads=4)
    with torch.no_grad():
        for layer in model.model.layers:
            value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
            value[:16] *= 1e-3
            value[0] *= 6e3  # head 0 has one strong input, six times as strong as others
            output.copy_(output.sign())
    dense = save_checkpoint(model, tmp_path / "dense")
    loses_strong_head = {}
    for method in ("transact", "wanda_sp"):
        config = CompressionConfig(method=method, ratio=0.5, calibration=CALIBRATION)
        report = compress_unverified(dense, tmp_path / method, config)
        assert {layer.num_attention_heads for layer in report.plan.layers} == {2}
        values = loaded(tmp_path / method).model.layers[0].self_attn.v_proj.weight
        strong = model.model.layers[0].self_attn.v_proj.weight[0]
        loses_strong_head[method] = not torch.equal(values[0], strong)
    assert loses_strong_head == {"transact": False, "wanda_sp": True}


@pytest.mark.parametrize(("variant", "ratio", "heads"), [("qwen3", 0.5, 2), ("llama", 0.3, 4)])
def test_stock_results_have_one_shape(
    tmp_path: Path, variant: str, ratio: float, heads: int
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    config = CompressionConfig(
        method="transact", target="stock", ratio=ratio, calibration=CALIBRATION, round_to=1
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    assert len(set(report.plan.layers)) == 1
    assert report.plan.layers[0].num_attention_heads == heads
    assert report.removed_fraction == pytest.approx(ratio, abs=0.02)
    assert loaded(tmp_path / "out").config.model_type == loaded(dense).config.model_type
