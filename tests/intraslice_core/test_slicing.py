"""Norms across heads make up for what is removed from queries and keys."""

from __future__ import annotations

import torch

from intraslice_core import decoder_layer, slicing
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Norm
from intraslice_core.rotary_statistics import HeadEnergies

HEADS, GROUPS, WIDTH, HIDDEN = 4, 2, 6, 8


def draw() -> tuple[LayerWeights, LayerSettings]:
    generator = torch.Generator().manual_seed(0)

    def linear(rows: int, columns: int = HIDDEN) -> Linear:
        return Linear(weight=torch.randn(rows, columns, generator=generator))

    weights = LayerWeights(
        num_key_value_heads=GROUPS,
        input_norm=None,
        query=linear(HEADS * WIDTH),
        key=linear(GROUPS * WIDTH),
        value=linear(GROUPS * WIDTH),
        attention_output=linear(HIDDEN, HEADS * WIDTH),
        mlp_norm=None,
        gate=None,
        up=linear(3),
        mlp_output=linear(HIDDEN, 3),
        query_norm=torch.rand(HEADS, WIDTH, generator=generator) + 0.5,
        key_norm=torch.rand(GROUPS, WIDTH, generator=generator) + 0.5,
        attention_output_norm=Norm(weight=torch.ones(HIDDEN)),
    )
    settings = LayerSettings(
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        activation=torch.relu,
        norm_eps=0.0,
        attention_scale=1.0,
        rotates=False,
        qk_norm_across_heads=True,
    )
    return weights, settings


def energies(query: torch.Tensor, key: torch.Tensor) -> HeadEnergies:
    """Return the energies of the queries and keys of a single token."""

    def of(heads: torch.Tensor) -> torch.Tensor:
        return heads.square()[0, :, 0].view(-1, 2, WIDTH // 2).sum(1).double()

    return HeadEnergies(query=of(query), key=of(key))


def test_kept_queries_and_keys_of_a_token_are_as_in_the_dense_layer() -> None:
    """For a single token, the mean of the removed energy is exact."""
    weights, settings = draw()
    token = torch.randn(1, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    heads = decoder_layer.queries_and_keys(token, weights)
    rotary = decoder_layer.Rotary(cos=torch.ones(1, WIDTH), sin=torch.zeros(1, WIDTH))
    query, key = decoder_layer.normed_and_rotated(*heads, weights, settings, rotary)
    pairs = torch.tensor([[0, 2], [1, 2]])
    sliced = slicing.slice_rotary_pairs(weights, pairs, settings, energies(*heads))
    sliced = slicing.slice_heads(
        sliced, torch.tensor([1]), torch.tensor([[0]]), settings, energies(*heads)
    )
    actual = decoder_layer.normed_and_rotated(
        *decoder_layer.queries_and_keys(token, sliced), sliced, settings, rotary
    )
    kept = torch.tensor([1, 2, 4, 5])
    torch.testing.assert_close(actual[0], query[:, 2:3, :, kept])
    torch.testing.assert_close(actual[1], key[:, 1:, :, kept])
