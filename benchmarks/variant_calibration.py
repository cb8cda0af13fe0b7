"""Calibration of a variant: its sequences, and the engine's measurement and shapes by them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from intraslice_core.allocation import estimators
from intraslice_core.allocation.budget import compression_budget, resolve_round_to
from intraslice_core.allocation.estimators import (
    AllocationCandidate,
    CalibrationSplit,
    lagrangian_shapes,
)
from intraslice_core.allocation.shapes import (
    AllocationContext,
    SensitivityCache,
    Shapes,
    choose_shapes,
)
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.calibration import sequence_groups, sequence_sources
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.content_key import content_key
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device_memory import BatchSize
from intraslice_core.export.targets import DEMANDS
from intraslice_core.hidden_states import group_sources
from intraslice_core.plan import ModelPlan
from intraslice_core.resume_state import ignore_saved
from intraslice_core.sensitivity import measurement
from intraslice_core.sensitivity.gradients import loss_gradients
from intraslice_core.sensitivity.measurement import ModelSensitivity
from intraslice_core.sensitivity.sensitivity_file import load_sensitivity


class HeldLayers(DenseLayerReader):
    """Weights of a small model in memory, read by many variants. Some may be replaced."""

    def __init__(self, reader: CheckpointReader, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(reader, device, dtype)
        self.held = [super(HeldLayers, self).weights(layer) for layer in range(self.num_layers)]

    def weights(self, layer: int) -> LayerWeights:
        """Return a layer's weights."""
        return self.held[layer]

    def replaced(self, held: Sequence[LayerWeights]) -> HeldLayers:
        """Return the same model with other layers."""
        layers = copy.copy(self)
        layers.held = list(held)
        return layers


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Sequences to fit on."""

    tokens: Tensor
    """(sequences, length), int64."""
    left_out: int = 0
    """Number of last sequences that are a group of sources of their own; 0 without groups."""


@dataclass(kw_only=True)
class Calibration:
    """Calibration of one model, with the sensitivity and the shapes that follow from it."""

    reader: CheckpointReader
    layers: HeldLayers
    settings: CompressionConfig
    """Settings with the calibration; the ratio is given later."""
    tokens: Tensor
    """(samples, sequence_length), int64."""
    prefix_length: int
    """Positions of the tokenizer's prefix at the beginning of every sequence."""
    shrinkage: float
    """Shrinkage of `H` where neurons and heads are chosen."""
    target_seed: int | None = None
    """Seed of the targets of the Fisher matrices; None takes the text's next tokens."""
    directory: Path
    """Directory of the measured sensitivity, of this calibration alone."""
    device: torch.device
    dtype: torch.dtype
    _shapes: dict[float, Shapes] = field(default_factory=dict)

    def of(self, reader: CheckpointReader, layers: HeldLayers, directory: Path) -> Calibration:
        """Return the calibration of another model by the same sequences."""
        return replace(self, reader=reader, layers=layers, directory=directory, _shapes={})

    def at(self, ratio: float) -> CompressionConfig:
        """Return the settings at a ratio."""
        return self.settings.model_copy(update={"ratio": ratio})

    def shapes(self, ratio: float) -> Shapes:
        """Return the engine's shapes, with the sensitivity to choose by."""
        if ratio not in self._shapes:
            config = self.at(ratio)
            geometry = self.reader.family.geometry(self.reader.config)
            context = AllocationContext(
                layers=self.layers,
                config=config,
                demands=DEMANDS["research"],
                geometry=geometry,
                budget=compression_budget(config, geometry, self.dtype.itemsize),
                device=self.device,
                stored_dtype=self.dtype,
                cache=SensitivityCache(
                    directory=self.directory, has_room=lambda _: True, on_saved=ignore_saved
                ),
                key=content_key,
                batch=BatchSize(requested=config.batch_size),
                before_batch=lambda *_: None,
                prefix_length=self.prefix_length,
            )
            gradients = partial(loss_gradients, target_seed=self.target_seed)
            # The engine has no settings for them.
            with (
                mock.patch.object(measurement, "CHOICE_SHRINKAGE", self.shrinkage),
                mock.patch.object(estimators, "loss_gradients", gradients),
            ):
                self._shapes[ratio] = choose_shapes(context, self.tokens)
        return self._shapes[ratio]

    def measured(self, ratio: float) -> ModelSensitivity:
        """Return the measurement that the shapes follow from; it is the same at all ratios."""
        self.shapes(ratio)
        measured = load_sensitivity(next(self.directory.glob("sensitivity-*")))
        assert measured is not None  # written by `choose_shapes`
        return measured

    @property
    def split(self) -> CalibrationSplit:
        """Split of the sequences by use."""
        kinds = sequence_sources(self.settings.resolved_calibration)
        return CalibrationSplit.of(self.tokens, kinds, self.prefix_length)

    def rows(self, *, by_group: bool = True) -> Rows:
        """Return the sequences, sorted by group of sources if wanted."""
        groups = sequence_groups(self.settings.resolved_calibration) if by_group else None
        tokens, left_out = group_sources(self.tokens, groups)
        return Rows(tokens=tokens, left_out=left_out)

    def candidate_plan(self, ratio: float, candidate: AllocationCandidate) -> ModelPlan:
        """Return the shapes of one candidate."""
        config, geometry = self.at(ratio), self.reader.family.geometry(self.reader.config)
        budget = compression_budget(config, geometry, self.dtype.itemsize).parameters
        return lagrangian_shapes(self.measured(ratio), geometry, budget, config, candidate).plan

    def equal_layers(self, ratio: float) -> ModelPlan:
        """Return equal layers with attention and MLP at the ratio."""
        config, geometry = self.at(ratio), self.reader.family.geometry(self.reader.config)
        round_to = resolve_round_to(config, geometry)
        return uniform_plan(geometry, ratio, round_to, DEMANDS["research"].shapes)
