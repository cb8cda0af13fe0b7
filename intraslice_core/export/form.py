"""Checkpoint forms of targets `adaptive` and `stock`, in architectures of other runtimes.

A `CheckpointForm` converts the compressed model's configuration and tensors. `WrittenReference`
loads the written files back into the IntraSlice architecture, for verification, and
`require_plain_attention` raises if a dense model does not fit these targets.
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
from intraslice_core.export.gguf import GgufLayout
from intraslice_core.families.canonical import CanonicalSettings, rope_of
from intraslice_core.modeling import IntraSliceConfig, IntraSliceForCausalLM

QUERY_TENSORS = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")


class CheckpointForm(Protocol):
    """Compressed model in the form of another architecture; tensors keep their canonical names."""

    @property
    def query_factor(self) -> float:
        """Return the factor that the queries are multiplied by."""

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the architecture under full names, in their stored dtype."""

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration of the architecture."""

    def gguf_layout(self) -> GgufLayout:
        """Return the layout of a GGUF file with the same model."""


def scaled_queries(canonical: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return the tensors, with those of the queries multiplied by `factor` in float32."""
    return {
        name: (tensor.float() * factor).to(tensor.dtype)
        if factor != 1.0 and name.endswith(QUERY_TENSORS)
        else tensor
        for name, tensor in canonical.items()
    }


@dataclass(frozen=True, kw_only=True)
class WrittenReference:
    """Reference for a written checkpoint: the same weights in the IntraSlice architecture."""

    form: CheckpointForm
    config: IntraSliceConfig
    """Configuration of the compressed model in the IntraSlice architecture."""

    def model(self, directory: Path) -> IntraSliceForCausalLM:
        """Return the IntraSlice model with the stored weights in float32.

        The factor on the queries is divided out.
        """
        with StoredTensors(directory) as stored:
            state = scaled_queries(
                {name: stored.tensor(name).float() for name in stored.names},
                1.0 / self.form.query_factor,
            )
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


def require_plain_attention(canonical: CanonicalSettings, settings: CompressionSettings) -> None:
    """Raise if the formats of targets `adaptive` and `stock` cannot express the dense attention.

    Raises:
        ConfigurationError: naming the rotary type or the sliding window.
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
    if canonical["sliding_window"] is None:
        return
    if settings.target == "adaptive":
        raise ConfigurationError(
            "target adaptive does not support sliding-window attention",
            field="compression.target",
            hint="use target stock or research",
        )
    if settings.gguf_formats:
        raise ConfigurationError(
            "the GGUF export does not support sliding-window attention",
            field="compression.exports",
            hint="remove the gguf exports",
        )
