"""Proof 3: the sliced module equals the full-size one with the same mask or projection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intraslice_core.families.blocks import block_settings, block_weights, rotary_tables

from intraslice_core import block, slicing
from intraslice_core.block import BlockSettings, BlockWeights, Linear
from intraslice_core.checkpoints import CheckpointReader
from tests.intraslice_core.tiny_models import VARIANTS, tiny_llama

Opened = tuple[BlockWeights, BlockSettings, block.Rotary, torch.Tensor]


@pytest.fixture(params=list(VARIANTS))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    dense = tiny_llama(tmp_path / "dense", **VARIANTS[request.param])
    with CheckpointReader(dense) as reader:
        tensors = reader.tensors(reader.family.layer_prefix(1))
        weights = block_weights(reader.family, tensors, torch.device("cpu"), torch.float32)
        rotary = rotary_tables(reader.config, 20, torch.device("cpu"))
        hidden = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0))
        return weights, block_settings(reader.config), rotary, hidden


def masked(linear: Linear, rows: torch.Tensor) -> Linear:
    keep = torch.zeros(linear.weight.shape[0], 1)
    keep[rows] = 1
    bias = None if linear.bias is None else linear.bias * keep.squeeze(-1)
    return Linear(weight=linear.weight * keep, bias=bias)


def test_rotary_pairs(opened: Opened) -> None:
    weights, settings, rotary, hidden = opened
    groups = settings.num_key_value_heads
    generator = torch.Generator().manual_seed(2)
    pairs = torch.stack(
        [torch.randperm(8, generator=generator)[:5].sort().values for _ in range(groups)]
    )
    rows = torch.cat([torch.cat((p, p + 8)) + 16 * g for g, p in enumerate(pairs)])
    full = replace(weights, key=masked(weights.key, rows))
    sliced = slicing.slice_rotary_pairs(weights, pairs, 16)
    assert sliced.query.weight.shape == (40, 48)
    assert sliced.key.weight.shape == (10 * groups, 48)
    torch.testing.assert_close(
        block.attention(hidden, sliced, settings, rotary),
        block.attention(hidden, full, settings, rotary),
        rtol=0,
        atol=1e-4,
    )


def test_value_basis(opened: Opened) -> None:
    weights, settings, rotary, hidden = opened
    groups = settings.num_key_value_heads
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(groups, 16, 10, generator=generator, dtype=torch.float64)).Q
    projector = torch.block_diag(*(basis @ basis.mT)).float()
    bias = weights.value.bias
    full = replace(
        weights,
        value=Linear(
            weight=projector @ weights.value.weight,
            bias=None if bias is None else projector @ bias,
        ),
    )
    wide = slicing.value_projection(basis, settings.num_attention_heads).float()
    output = weights.attention_output
    sliced = replace(
        slicing.project_values(weights, basis),
        attention_output=Linear(weight=output.weight @ wide, bias=output.bias),
    )
    assert sliced.value.weight.shape == (10 * groups, 48)
    torch.testing.assert_close(
        block.attention(hidden, sliced, settings, rotary),
        block.attention(hidden, full, settings, rotary),
        rtol=0,
        atol=1e-4,
    )


def test_neurons(opened: Opened) -> None:
    weights, settings, _, hidden = opened
    kept = torch.randperm(64, generator=torch.Generator().manual_seed(4))[:37].sort().values
    full = replace(weights, up=masked(weights.up, kept))
    output = weights.mlp_output
    sliced = replace(
        slicing.slice_neurons(weights, kept),
        mlp_output=Linear(weight=output.weight[:, kept], bias=output.bias),
    )
    assert sliced.gate.weight.shape == (37, 48)
    torch.testing.assert_close(
        block.mlp(hidden, sliced, settings), block.mlp(hidden, full, settings), rtol=0, atol=1e-4
    )
