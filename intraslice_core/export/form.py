"""Checkpoint forms of targets `adaptive` and `stock`, in architectures of other runtimes.

A `CheckpointForm` converts the compressed model's configuration and tensors. `WrittenReference`
loads the written files back into the IntraSlice architecture, for verification, and
`require_expressible` raises if a dense model does not fit these targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.config import CompressionSettings
from intraslice_core.errors import ConfigurationError
from intraslice_core.export.gguf_layout import GgufLayout, deci_layout, family_layout
from intraslice_core.export.stock import fewer_layers
from intraslice_core.export.targets import TargetDemands
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.families.canonical import CanonicalSettings, rope_of
from intraslice_core.methods import METHODS
from intraslice_core.modeling import IntraSliceConfig, IntraSliceForCausalLM


class CheckpointForm(Protocol):
    """Compressed model in the form of another architecture."""

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a layer's tensors of the architecture under full names, in their stored dtype.

        Args:
            canonical: the layer's tensors by full canonical names.
        """

    def canonical_tensors(self, stored: StoredTensors) -> dict[str, Tensor]:
        """Return the written tensors in the IntraSlice architecture, in float32."""

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration of the architecture."""

    def gguf_layout(self) -> GgufLayout:
        """Return the layout of a GGUF file with the same model.

        Raises:
            ConfigurationError: if llama.cpp cannot compute the model.
        """


@dataclass(frozen=True, kw_only=True)
class WrittenReference:
    """Reference for a written checkpoint: the same weights in the IntraSlice architecture."""

    form: CheckpointForm
    config: IntraSliceConfig
    """Configuration of the compressed model in the IntraSlice architecture."""

    def model(self, directory: Path) -> IntraSliceForCausalLM:
        """Return the IntraSlice model with the stored weights in float32.

        Factors that the form puts on weights are divided out.
        """
        with StoredTensors(directory) as stored:
            state = self.form.canonical_tensors(stored)
        # The IntraSlice architecture has the unused input norm of layers without attention.
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}.input_layernorm.weight"
            state.setdefault(name, torch.ones(self.config.hidden_size))
        loaded: IntraSliceForCausalLM = IntraSliceForCausalLM.from_pretrained(
            None, config=self.config, state_dict=state, dtype=torch.float32
        )
        return loaded


ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary types whose frequencies do not depend on the length of the text."""


def require_expressible(
    family: FamilyAdapter,
    config: PreTrainedConfig,
    demands: TargetDemands,
    settings: CompressionSettings,
) -> None:
    """Raise if the formats of targets `adaptive` and `stock` cannot express the dense model.

    Args:
        family: of the dense model.
        config: of the dense model.
        demands: of the target on the family.
        settings: of the compression.

    Raises:
        ConfigurationError: naming the setting of the model that does not fit.
    """
    canonical = family.canonical_settings(config)
    cuts_pairs = not demands.shapes.stays_whole("pairs", canonical["head_dim"] // 2)
    if cuts_pairs or settings.target == "adaptive":
        _require_one_table(canonical, settings)
    if settings.target == "adaptive" and canonical["sliding_window"] is not None:
        raise ConfigurationError(
            "target adaptive does not support sliding-window attention",
            field="compression.target",
            hint="use target stock or research",
        )
    if settings.gguf_formats and settings.target == "adaptive":
        deci_layout(canonical, family.geometry(config).dense_plan().layers)
    elif settings.gguf_formats:
        family_layout(family, config)
        if METHODS[settings.method].layers is not None:
            _require_any_order(family, config)


def _require_any_order(family: FamilyAdapter, config: PreTrainedConfig) -> None:
    """Raise if llama.cpp assigns kinds of layers by their number, so that none may be removed.

    Raises:
        ConfigurationError: naming the pattern.
    """
    canonical = family.canonical_settings(config)
    numbers = range(canonical["num_hidden_layers"])
    rotate = canonical["rope_layers"] or (True,) * len(numbers)
    if len(set(zip(canonical["layer_types"], rotate, strict=True))) == 1:
        return
    for removed in numbers:
        rest = tuple(layer for layer in numbers if layer != removed)
        try:
            family_layout(family, type(config)(**config.to_dict() | fewer_layers(config, rest)))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"llama.cpp knows kinds of layers of {family.model_type} models by their numbers, "
                f"which change when layer {removed} is removed: {error.message}",
                field="compression.exports",
                hint="remove the gguf exports, or use a method that keeps all layers",
            ) from error


def _require_one_table(canonical: CanonicalSettings, settings: CompressionSettings) -> None:
    """Raise if the rotary frequencies depend on the length of the text.

    Raises:
        ConfigurationError: naming the rotary type.
    """
    for layer_type in sorted(set(canonical["layer_types"])):
        rope = rope_of(canonical, layer_type)
        rope_type = rope.get("rope_type", "default")
        one_table = rope_type == "longrope" and rope.get("short_factor") == rope.get("long_factor")
        if rope_type not in ROPE_TYPES and not one_table:
            raise ConfigurationError(
                f"target {settings.target} does not support rope_type {rope_type!r}",
                field="compression.target",
                hint=f"use target research; the others support {', '.join(ROPE_TYPES)}",
            )
