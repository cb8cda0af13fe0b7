"""Compression in two shots: half of the cut, a new measurement on the result, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.writer import CheckpointWriter
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.families.canonical import named_tensors
from intraslice_core.modeling import intraslice_config
from intraslice_core.plan import ModelPlan, Module
from intraslice_core.statistics_cache import DenseStates, StatisticsCache


def first_ratio(ratio: float) -> float:
    """Return the ratio of the first shot: both remove the same fraction of what there is."""
    return 1.0 - (1.0 - ratio) ** 0.5


def remaining_ratio(ratio: float, dense: int, parameters: int) -> float:
    """Return the ratio of the second shot.

    Args:
        ratio: of both shots together.
        dense: compressible parameters of the dense model.
        parameters: those of the first shot's result.
    """
    return 1.0 - (1.0 - ratio) * dense / parameters


@dataclass(frozen=True, kw_only=True)
class DenseTarget(DenseStates):
    """Hidden states of the dense model as targets of a compression of a compressed model.

    Without it the targets of the second shot are the hidden states of its input. Layers whose
    modules are parallel are not supported.
    """

    layers: DenseLayers
    """The dense model."""
    batch_size: int
    cache: StatisticsCache = field(
        default_factory=lambda: StatisticsCache(directory=Path(), max_bytes=0)
    )
    key: str = ""

    def restore(self, layer: int, module: Module, hidden: Tensor) -> bool:
        """Move the dense hidden states past a module of the dense model, in place."""
        weights, settings = self.layers.weights(layer), self.layers.settings(layer)
        assert not settings.parallel_block
        rotary = self.layers.rotary(layer, hidden.shape[1])
        for rows in hidden.split(self.batch_size):
            before = rows.to(weights.up.weight.device)
            if module == "attention":
                added = decoder_layer.attention(before, weights, settings, rotary)
            else:
                added = decoder_layer.mlp(before, weights, settings)
            rows += added.to(rows.device)
        return True

    def keep(self, layer: int, module: Module, hidden: Tensor) -> None:
        """Save nothing."""


def save_compressed(
    reader: CheckpointReader,
    plan: ModelPlan,
    layers: Sequence[LayerWeights],
    out: Path,
    dtype: torch.dtype,
) -> None:
    """Write sliced layers as a `research` checkpoint.

    Args:
        reader: the dense model.
        plan: shapes of the layers.
        layers: sliced layers.
        out: directory to create.
        dtype: stored dtype.
    """
    family, config = reader.family, reader.config
    half = family.geometry(config).rotary_pairs
    with CheckpointWriter(out, dtype=dtype) as writer:
        for name, own_name in family.outer_names(config).items():
            writer.add({name: reader.tensor(own_name)})
        for number, weights in enumerate(layers):
            writer.add(named_tensors(number, weights))
        pairs = [_kept_pairs(weights, half) for weights in layers]
        sliced = intraslice_config(family.canonical_settings(config), plan.layers, pairs)
        writer.finish(sliced, reader.directory)


def _kept_pairs(weights: LayerWeights, total: int) -> list[list[int]]:
    """Return the kept rotary pairs of every KV head."""
    if weights.rotary_pairs is None:
        return [list(range(total))] * weights.num_key_value_heads
    pairs: list[list[int]] = weights.rotary_pairs.tolist()
    return pairs
