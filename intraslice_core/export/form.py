"""How a compressed model is written where it is not of our class, and what it must compute."""

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
    """One compressed model as a class that others have; tensors keep their canonical names."""

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by."""

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under full names as the class wants them, in their own dtype."""

    def configuration(self) -> PreTrainedConfig:
        """Of that class."""

    def gguf_layout(self) -> GgufLayout:
        """The same for llama.cpp."""


def scaled_queries(canonical: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors, those of queries multiplied in float32."""
    return {
        name: (tensor.float() * factor).to(tensor.dtype)
        if factor != 1.0 and name.endswith(QUERY_TENSORS)
        else tensor
        for name, tensor in canonical.items()
    }


@dataclass(frozen=True, kw_only=True)
class WrittenReference:
    """What a written checkpoint must compute: its own weights in our class."""

    form: CheckpointForm
    config: IntraSliceConfig
    """The compressed model as one of our class."""

    def model(self, directory: Path) -> IntraSliceForCausalLM:
        """Our model with the weights of the files, in float32: the queries' factor taken back."""
        with StoredTensors(directory) as stored:
            state = scaled_queries(
                {name: stored.tensor(name).float() for name in stored.names},
                1.0 / self.form.query_factor,
            )
        # Of layers without attention our class keeps the norm, which nothing reads.
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}.input_layernorm.weight"
            state.setdefault(name, torch.ones(self.config.hidden_size))
        loaded: IntraSliceForCausalLM = IntraSliceForCausalLM.from_pretrained(
            None, config=self.config, state_dict=state, dtype=torch.float32
        )
        return loaded


ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies do not depend on the length of the text."""


def require_plain_attention(canonical: CanonicalSettings, settings: CompressionSettings) -> None:
    """Refuse what the files of targets `adaptive` and `stock` have no words for.

    Raises:
        ConfigurationError: naming the rotary type, or the window.
    """
    for layer_type in sorted(set(canonical["layer_types"])):
        rope = rope_of(canonical, layer_type)
        kind = rope.get("rope_type", "default")
        one_table = kind == "longrope" and rope.get("short_factor") == rope.get("long_factor")
        if kind not in ROPE_TYPES and not one_table:
            raise ConfigurationError(
                f"only target research is built for rope_type {kind}",
                field="compression.target",
                hint=f"the others are for {', '.join(ROPE_TYPES)}",
            )
    if canonical["sliding_window"] is None:
        return
    if settings.target == "adaptive":
        raise ConfigurationError(
            "target adaptive has no sliding window",
            field="compression.target",
            hint="use target stock or research",
        )
    if settings.gguf_formats:
        raise ConfigurationError(
            "the GGUF files have no sliding window",
            field="compression.exports",
            hint="leave the gguf exports out",
        )
