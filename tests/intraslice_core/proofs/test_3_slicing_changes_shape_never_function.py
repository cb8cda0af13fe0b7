"""Proof 3: the sliced module equals the full-size one with the same mask or projection.

For normed queries and keys the full-size module has the masked projections before the norm, whose
mean is over the whole dense head: masked dimensions count as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_checkpoint

HIDDEN = 48


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A dense layer and inputs for it."""

    weights: LayerWeights
    settings: LayerSettings
    rotary: decoder_layer.Rotary
    hidden: Tensor

    @property
    def head_dim(self) -> int:
        return self.settings.head_dim

    @property
    def pairs(self) -> int:
        return self.settings.head_dim // 2


@pytest.fixture(params=sorted(FAMILY_VARIANTS))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    return open_layer(request.param, tmp_path)


def open_layer(variant: str, folder: Path) -> Opened:
    dense = tiny_checkpoint(folder / "dense", variant)
    with CheckpointReader(dense) as reader:
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        return Opened(
            weights=layers.weights(1),
            settings=layers.settings(1),
            rotary=layers.rotary(1, 20),
            hidden=torch.randn(2, 20, HIDDEN, generator=torch.Generator().manual_seed(0)),
        )


def masked(linear: Linear, rows: torch.Tensor) -> Linear:
    keep = torch.zeros(linear.weight.shape[0], 1)
    keep[rows] = 1
    bias = None if linear.bias is None else linear.bias * keep.squeeze(-1)
    return Linear(weight=linear.weight * keep, bias=bias)


def assert_same_attention(opened: Opened, sliced: LayerWeights, full: LayerWeights) -> None:
    torch.testing.assert_close(
        decoder_layer.attention(opened.hidden, sliced, opened.settings, opened.rotary),
        decoder_layer.attention(opened.hidden, full, opened.settings, opened.rotary),
        rtol=0,
        atol=1e-4,
    )


def test_rotary_pairs(opened: Opened) -> None:
    weights, groups, width = opened.weights, opened.settings.num_key_value_heads, opened.head_dim
    keep = opened.pairs // 2 + 1
    generator = torch.Generator().manual_seed(2)
    pairs = torch.stack(
        [
            torch.randperm(opened.pairs, generator=generator)[:keep].sort().values
            for _ in range(groups)
        ]
    )
    dimensions = torch.cat((pairs, pairs + opened.pairs), -1)
    key_rows = (dimensions + width * torch.arange(groups).unsqueeze(-1)).flatten()
    heads = opened.settings.num_attention_heads
    per_query = dimensions.repeat_interleave(heads // groups, 0)
    query_rows = (per_query + width * torch.arange(heads).unsqueeze(-1)).flatten()
    full = replace(
        weights, key=masked(weights.key, key_rows), query=masked(weights.query, query_rows)
    )
    sliced = slicing.slice_rotary_pairs(weights, pairs, opened.settings)
    assert sliced.query.weight.shape == (heads * 2 * keep, HIDDEN)
    assert sliced.key.weight.shape == (groups * 2 * keep, HIDDEN)
    assert_same_attention(opened, sliced, full)


@pytest.mark.parametrize("variant", ["smollm3", "opt"])
def test_basis_of_queries_and_keys_without_rope(variant: str, tmp_path: Path) -> None:
    opened = open_layer(variant, tmp_path)
    weights, groups, width = opened.weights, opened.settings.num_key_value_heads, opened.head_dim
    assert not opened.settings.rotates
    generator = torch.Generator().manual_seed(6)
    query, key = torch.randn(2, groups, width, width - 2, generator=generator, dtype=torch.float64)
    product = (query @ key.mT).repeat_interleave(opened.settings.num_attention_heads // groups, 0)
    mixing = torch.block_diag(*product).float().mT
    bias = weights.query.bias
    full = replace(
        weights,
        query=Linear(
            weight=mixing @ weights.query.weight, bias=None if bias is None else mixing @ bias
        ),
    )
    sliced = slicing.project_queries_and_keys(weights, query, key)
    assert sliced.key.weight.shape == (groups * (width - 2), HIDDEN)
    assert_same_attention(opened, sliced, full)


def test_value_basis(opened: Opened) -> None:
    weights, groups, width = opened.weights, opened.settings.num_key_value_heads, opened.head_dim
    keep = width - 3
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(groups, width, keep, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(drawn).Q
    projector = torch.block_diag(*(basis @ basis.mT)).float()
    bias = weights.value.bias
    full = replace(
        weights,
        value=Linear(
            weight=projector @ weights.value.weight,
            bias=None if bias is None else projector @ bias,
        ),
    )
    wide = slicing.value_projection(basis, opened.settings.num_attention_heads).float()
    output = weights.attention_output
    sliced = replace(
        slicing.project_values(weights, basis),
        attention_output=Linear(weight=output.weight @ wide, bias=output.bias),
    )
    assert sliced.value.weight.shape == (keep * groups, HIDDEN)
    assert_same_attention(opened, sliced, full)


def test_query_heads_and_groups(opened: Opened) -> None:
    """Slicing a KV group and a query head of each other group equals zeroing their outputs."""
    weights, groups = opened.weights, opened.settings.num_key_value_heads
    group = opened.settings.num_attention_heads // groups
    kept_groups = torch.arange(1, groups)
    kept_queries = torch.arange(max(group - 1, 1)).expand(groups - 1, -1)
    sliced = slicing.slice_heads(weights, kept_groups, kept_queries, opened.settings)
    columns = torch.zeros(opened.settings.num_attention_heads, opened.head_dim)
    heads = (kept_groups.unsqueeze(-1) * group + kept_queries).flatten()
    columns[heads] = 1.0
    output = weights.attention_output
    full = replace(
        weights,
        attention_output=Linear(weight=output.weight * columns.flatten(), bias=output.bias),
        # A norm across heads counts the queries and keys of removed heads as zero.
        query=masked(weights.query, columns.flatten().nonzero().squeeze(-1)),
        key=masked(weights.key, torch.arange(opened.head_dim, groups * opened.head_dim)),
    )
    assert sliced.num_attention_heads == heads.shape[0]
    assert_same_attention(opened, sliced, full)


def test_neurons(opened: Opened) -> None:
    weights, settings, hidden = opened.weights, opened.settings, opened.hidden
    kept_neurons = torch.randperm(64, generator=torch.Generator().manual_seed(4))[:37].sort().values
    columns = torch.zeros(64)
    columns[kept_neurons] = 1.0
    output = weights.mlp_output
    full = replace(weights, mlp_output=Linear(weight=output.weight * columns, bias=output.bias))
    sliced = replace(
        slicing.slice_neurons(weights, kept_neurons),
        mlp_output=Linear(weight=output.weight[:, kept_neurons], bias=output.bias),
    )
    assert sliced.up.weight.shape == (37, HIDDEN)
    torch.testing.assert_close(
        decoder_layer.mlp(hidden, sliced, settings),
        decoder_layer.mlp(hidden, full, settings),
        rtol=0,
        atol=1e-4,
    )


def test_removed_modules_add_nothing(opened: Opened) -> None:
    hidden, settings = opened.hidden, opened.settings
    without = slicing.remove_mlp(slicing.remove_attention(opened.weights))
    assert torch.equal(decoder_layer.forward(hidden, without, settings, opened.rotary), hidden)
