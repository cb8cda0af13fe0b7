"""Sensitivity of layers with RoPE, which select pairs, beside layers with bases of their own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.allocation.shared_pairs import with_shared_pairs
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity
from intraslice_core.sensitivity.sensitivity_file import load_sensitivity, save_sensitivity

WIDTH, PAIRS = 8, 4


def layer(seed: int, **more: Tensor) -> LayerSensitivity:
    """Return a layer of which only the moment of its pairs matters."""
    features = torch.randn(2, WIDTH, 40, generator=torch.Generator().manual_seed(seed)).double()
    optional = {"query_directions", "key_directions"}
    parts = {field.name: torch.zeros(1) for field in fields(LayerSensitivity)}
    parts |= {"pair_moment": features @ features.mT, "pair_losses": torch.ones(PAIRS + 1).double()}
    parts |= {"query_energy": torch.ones(2, PAIRS), "key_energy": torch.ones(2, PAIRS)}
    return LayerSensitivity(**{n: p for n, p in parts.items() if n not in optional}, **more)


def free_layer(seed: int) -> LayerSensitivity:
    directions = torch.eye(WIDTH).double().expand(2, -1, -1).contiguous()
    return layer(seed, query_directions=directions, key_directions=2 * directions)


def test_saved_sensitivity_is_read_with_and_without_directions(tmp_path: Path) -> None:
    measured = ModelSensitivity(layers=(layer(0), free_layer(1)), trials=())
    save_sensitivity(tmp_path / "file", measured)
    loaded = load_sensitivity(tmp_path / "file")
    assert loaded is not None
    assert loaded.layers[0].query_directions is loaded.layers[0].key_directions is None
    for saved, read in zip(measured.layers, loaded.layers, strict=True):
        assert saved.tensors().keys() == read.tensors().keys()
        assert all(torch.equal(part, read.tensors()[n]) for n, part in saved.tensors().items())
    assert loaded.nbytes == measured.nbytes


def test_layers_with_bases_of_their_own_do_not_share_pairs() -> None:
    rotating = with_shared_pairs((layer(0), layer(2)))
    mixed = with_shared_pairs((layer(0), free_layer(1), layer(2)))
    assert torch.equal(mixed[0].pair_order, rotating[0].pair_order)
    for first, second in zip((mixed[0], mixed[2]), rotating, strict=True):
        assert torch.equal(first.pair_losses, second.pair_losses)
    assert torch.equal(mixed[1].pair_losses, torch.ones(PAIRS + 1).double())
    alone = with_shared_pairs((free_layer(1),))
    assert alone[0].query_directions is not None
    assert torch.equal(alone[0].pair_losses, free_layer(1).pair_losses)
