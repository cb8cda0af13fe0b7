"""Magnitude pruning against an oracle that zeroes weights at full size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.config import CompressionConfig
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    checkpoint_of,
    kept_mask,
    loaded,
    logits,
    other_tokens,
)


def squares(rows: Tensor) -> list[float]:
    """Return the squared norm of every row."""
    return [float((row.double() ** 2).sum()) for row in rows.detach()]


def zero_rows(linear: nn.Module, mask: Tensor) -> None:
    """Remove outputs of a projection, where the mask is 0."""
    with torch.no_grad():
        linear.weight.mul_(mask[:, None])
        if linear.bias is not None:
            linear.bias.mul_(mask)


def mask_attention(masked: Masked, layer: int, pairs: int, values: int) -> None:
    """Zero all but the pairs and value dimensions of largest norms in every KV group."""
    own, groups = masked.layers[layer].self_attn, masked.groups
    queries, keys = squares(own.q_proj.weight), squares(own.k_proj.weight)
    rows, columns = squares(own.v_proj.weight), squares(own.o_proj.weight.T)
    width, copies = len(keys) // groups, masked.heads // groups
    half = width // 2
    kept_rows, kept_values = [], []
    for group in range(groups):
        heads = [group * copies + copy for copy in range(copies)]

        def product(many: list[float], one: list[float], at: int, heads=heads, group=group):
            return sum(many[head * width + at] for head in heads) * one[group * width + at]

        scores = [
            product(queries, keys, pair) + product(queries, keys, half + pair)
            for pair in range(half)
        ]
        kept_rows.append(kept_mask(scores, pairs).repeat(2))
        value_scores = [product(columns, rows, at) for at in range(width)]
        kept_values.append(kept_mask(value_scores, values))
    zero_rows(own.k_proj, torch.cat(kept_rows))
    zero_rows(own.q_proj, torch.stack(kept_rows).repeat_interleave(copies, 0).flatten())
    masked.attention[layer] = torch.stack(kept_values).repeat_interleave(copies, 0).flatten()


def mask_neurons(masked: Masked, layer: int, keep: int) -> None:
    """Zero all but the neurons with the largest product of squared norms."""
    own = masked.layers[layer].mlp
    norms = [squares(own.up_proj.weight), squares(own.down_proj.weight.T)]
    if getattr(own, "gate_proj", None) is not None:
        norms.append(squares(own.gate_proj.weight))
    scores = [
        float(torch.tensor(each, dtype=torch.float64).prod()) for each in zip(*norms, strict=True)
    ]
    masked.mlp[layer] = kept_mask(scores, keep)


@pytest.mark.parametrize("variant", ["llama", "qwen2", "phi", "one KV head", "multi-head"])
def test_result_is_the_dense_model_without_the_units_of_smallest_norms(
    tmp_path: Path, variant: str
) -> None:
    dense = checkpoint_of(variant, tmp_path / "dense")
    config = CompressionConfig(
        method="magnitude", ratio=0.4, calibration=CALIBRATION, round_to=1, module_cap=0.9
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(0.4, abs=0.005)
    masked = Masked.of(dense, tmp_path / "canonical")
    for layer, plan in enumerate(report.plan.layers):
        mask_attention(masked, layer, plan.qk_pairs, plan.v_head_dim)
        mask_neurons(masked, layer, plan.intermediate_size)
        assert plan.qk_pairs < report.geometry.dense_layer().qk_pairs
        assert plan.intermediate_size < report.geometry.intermediate_size
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )
