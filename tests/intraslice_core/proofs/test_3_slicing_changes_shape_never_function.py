"""Proof 3: the sliced module equals the full-size one with the same mask or projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from intraslice_core import block, slicing
from intraslice_core.block import BlockSettings, BlockWeights, Linear, Rotary
from intraslice_core.families import family_for
from intraslice_core.families.canonical import block_settings, block_weights, rotary_tables
from intraslice_core.statistics import HeadEnergyAccumulator
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_family_model

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    weights: BlockWeights
    settings: BlockSettings
    rotary: Rotary
    hidden: torch.Tensor

    @property
    def groups(self) -> int:
        return self.settings.num_key_value_heads

    def attention(self, weights: BlockWeights) -> torch.Tensor:
        return block.attention(self.hidden, weights, self.settings, self.rotary)

    def mlp(self, weights: BlockWeights) -> torch.Tensor:
        return block.mlp(self.hidden, weights, self.settings)


def opened_layer(variant: str) -> Opened:
    model = tiny_family_model(variant)
    family, prefix = family_for(model.config), "model.layers.1."
    canonical = family.canonical_settings(model.config)
    own = {n.removeprefix(prefix): t for n, t in model.state_dict().items() if prefix in n}
    tensors = family.canonical_layer(model.config, 1, own)
    return Opened(
        weights=block_weights(tensors, canonical["num_key_value_heads"], CPU, torch.float32),
        settings=block_settings(canonical, 1),
        rotary=rotary_tables(canonical, 1, 20, CPU),
        hidden=torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0)),
    )


@pytest.fixture(params=list(FAMILY_VARIANTS))
def opened(request: pytest.FixtureRequest) -> Opened:
    return opened_layer(request.param)


def masked(linear: Linear, rows: torch.Tensor) -> Linear:
    keep = torch.zeros(linear.weight.shape[0], 1)
    keep[rows] = 1
    bias = None if linear.bias is None else linear.bias * keep.squeeze(-1)
    return Linear(weight=linear.weight * keep, bias=bias)


def some_pairs(opened: Opened, keep: int) -> torch.Tensor:
    total, generator = opened.settings.head_dim // 2, torch.Generator().manual_seed(2)
    chosen = [torch.randperm(total, generator=generator)[:keep] for _ in range(opened.groups)]
    return torch.stack(chosen).sort(-1).values


def rows_of(pairs: torch.Tensor, head_dim: int, group: int = 1) -> torch.Tensor:
    dimensions = torch.cat((pairs, pairs + head_dim // 2), -1).repeat_interleave(group, 0)
    return torch.cat([rows + head_dim * head for head, rows in enumerate(dimensions)])


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_rotary_pairs(opened: Opened) -> None:
    weights, head_dim, keep = opened.weights, opened.settings.head_dim, 4
    pairs = some_pairs(opened, keep)
    group = opened.settings.num_attention_heads // opened.groups
    # A norm sees what goes, in a query too: there both sides must be masked.
    full = replace(
        weights,
        query=masked(weights.query, rows_of(pairs, head_dim, group)),
        key=masked(weights.key, rows_of(pairs, head_dim)),
    )
    sliced = slicing.slice_rotary_pairs(weights, pairs, opened.settings)
    assert sliced.query.weight.shape == (4 * 2 * keep, 48)
    assert sliced.key.weight.shape == (2 * keep * opened.groups, 48)
    assert_same(opened.attention(sliced), opened.attention(full))


@pytest.mark.parametrize("variant", ["qwen3", "gemma3"])
def test_dropped_pairs_without_energy_change_no_norm(variant: str) -> None:
    opened = opened_layer(variant)
    weights, settings = opened.weights, opened.settings
    pairs = some_pairs(opened, 5)
    group = settings.num_attention_heads // opened.groups
    full = replace(
        weights,
        query=masked(weights.query, rows_of(pairs, settings.head_dim, group)),
        key=masked(weights.key, rows_of(pairs, settings.head_dim)),
    )
    energies = slicing.weight_energies(full)
    sliced = slicing.slice_rotary_pairs(full, pairs, settings, energies)
    assert_same(opened.attention(sliced), opened.attention(full))


@pytest.mark.parametrize("variant", ["qwen3", "gemma3"])
def test_folded_energy_keeps_the_kept_pairs_at_their_size(variant: str) -> None:
    """On average over tokens; without it they would grow by what the dropped ones leave behind."""
    opened = opened_layer(variant)
    weights, settings = opened.weights, opened.settings
    pairs = some_pairs(opened, 5)
    normed = block.attention_inputs(opened.hidden, weights, settings)
    sums = HeadEnergyAccumulator(
        num_key_value_heads=opened.groups, pairs=settings.head_dim // 2, device=CPU
    )
    sums.add(*block.queries_and_keys(normed, weights))
    kept = torch.cat((pairs, pairs + settings.head_dim // 2), -1)

    def key_energy(sliced: BlockWeights) -> torch.Tensor:
        _, keys = block.rotated_queries_and_keys(normed, sliced, settings, opened.rotary)
        return keys.square().sum((0, 2, 3))

    _, dense = block.rotated_queries_and_keys(normed, weights, settings, opened.rotary)
    index = kept[None, :, None].expand(2, -1, 20, -1)
    expected = dense.gather(-1, index).square().sum((0, 2, 3))
    folded = slicing.slice_rotary_pairs(weights, pairs, settings, sums.energies())
    plain = slicing.slice_rotary_pairs(weights, pairs, settings)
    torch.testing.assert_close(key_energy(folded), expected, rtol=0.2, atol=0)
    assert ((key_energy(plain) / expected - 1) > 0.3).all()


def test_value_basis(opened: Opened) -> None:
    weights, width, groups = opened.weights, opened.settings.head_dim, opened.groups
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(groups, width, 7, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random).Q
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
    assert sliced.value.weight.shape == (7 * groups, 48)
    assert_same(opened.attention(sliced), opened.attention(full))


def test_neurons(opened: Opened) -> None:
    weights = opened.weights
    kept = torch.randperm(64, generator=torch.Generator().manual_seed(4))[:37].sort().values
    output = weights.mlp_output
    columns = torch.zeros(64).index_fill(0, kept, 1.0)
    full = replace(weights, mlp_output=replace(output, weight=output.weight * columns))
    sliced = replace(
        slicing.slice_neurons(weights, kept), mlp_output=slicing.select_inputs(output, kept)
    )
    assert sliced.up.weight.shape == (37, 48)
    assert_same(opened.mlp(sliced), opened.mlp(full))


def without_heads(weights: BlockWeights, heads: list[int], width: int) -> BlockWeights:
    """The block with the outputs of all other heads set to zero."""
    columns = torch.zeros(weights.num_attention_heads, width)
    columns[heads] = 1
    output = weights.attention_output
    return replace(
        weights, attention_output=replace(output, weight=output.weight * columns.flatten())
    )


@pytest.mark.parametrize(
    ("groups", "queries"),
    [([0, 1], [[1], [0]]), ([1], [[0, 1]]), ([1], [[1]]), ([0], [[0]])],
    ids=["a_query_of_each_group", "a_group", "a_query_of_a_group", "the_first"],
)
@pytest.mark.parametrize("variant", ["llama", "qwen3", "phi_grouped", "gemma2", "gemma3_biased"])
@pytest.mark.parametrize("cut_before", [False, True])
def test_heads(variant: str, groups: list[int], queries: list[list[int]], cut_before: bool) -> None:
    opened = opened_layer(variant)
    weights = opened.weights
    if cut_before:
        pairs = some_pairs(opened, 3)
        weights = slicing.slice_rotary_pairs(weights, pairs, opened.settings)
    kept = [2 * group + query for group, row in zip(groups, queries, strict=True) for query in row]
    full = without_heads(weights, kept, opened.settings.head_dim)
    sliced = slicing.slice_heads(weights, torch.tensor(groups), torch.tensor(queries))
    assert sliced.num_attention_heads == len(kept)
    assert sliced.num_key_value_heads == len(groups)
    assert_same(opened.attention(sliced), opened.attention(full))


def test_removed_modules_add_nothing(opened: Opened) -> None:
    no_queries = torch.empty(0, 0, dtype=torch.long)
    without = slicing.slice_heads(opened.weights, no_queries[0:0, 0:0].flatten(), no_queries)
    without = slicing.remove_mlp(without)
    assert not without.has_attention
    assert not without.has_mlp
    behind = block.behind(opened.hidden, without, opened.settings, opened.rotary)
    assert torch.equal(behind, opened.hidden)
    assert_same(
        block.behind(
            opened.hidden, slicing.remove_mlp(opened.weights), opened.settings, opened.rotary
        ),
        opened.hidden + opened.attention(opened.weights),
    )
