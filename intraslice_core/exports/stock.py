"""The `stock` target: a compressed model that is one of the dense model's own class.

All layers have one shape, q, k and v heads are equally wide, and all heads keep the same rotary
pairs. What else a plain class cannot say is put into numbers it has (`targets.md`):

* the kept pairs turn as before by `longrope` factors, which divide the class's own frequencies
  `rope_theta^(-j/m)`, m pairs a head, into those of the kept ones;
* scores are divided by the square root of the new head dim instead of the old one's, which the
  queries are multiplied by.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints import CheckpointReader
from intraslice_core.errors import ConfigurationError
from intraslice_core.families.canonical import (
    CanonicalSettings,
    rope_of,
    rotary_embedding,
)
from intraslice_core.families.family import Family
from intraslice_core.modeling import IntraSliceConfig, IntraSliceForCausalLM
from intraslice_core.plan import LayerPlan

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies do not depend on the length of the text."""
_SCALED = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")


def require_fixed_frequencies(canonical: CanonicalSettings) -> None:
    """Refuse rotary embeddings that no fixed factors can express.

    Raises:
        ConfigurationError: naming the type.
    """
    for layer_type in sorted(set(canonical["layer_types"])):
        kind = rope_of(canonical, layer_type).get("rope_type", "default")
        if kind not in ROPE_TYPES:
            raise ConfigurationError(
                f"target stock is not built for rope_type {kind}",
                field="compression.target",
                hint=f"it is for {', '.join(ROPE_TYPES)}; research is for all",
            )


@dataclass(frozen=True, kw_only=True)
class StockForm:
    """How one compressed model is written."""

    family: Family
    config: PreTrainedConfig
    """Of the dense model."""
    canonical: CanonicalSettings
    shape: LayerPlan
    """Of every layer."""
    pairs: Tensor
    """Kept rotary pairs of every head, (qk_pairs,), ascending."""

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by: √(new head dim / old head dim)."""
        return float((self.shape.qk_head_dim / self.canonical["head_dim"]) ** 0.5)

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under full canonical names as the class wants them, in their own dtype."""
        return {
            name: (tensor.float() * self.query_factor).to(tensor.dtype)
            if name.endswith(_SCALED)
            else tensor
            for name, tensor in canonical.items()
        }

    def configuration(self) -> PreTrainedConfig:
        """Of the dense model's class."""
        sizes = {
            "head_dim": self.shape.qk_head_dim,
            "intermediate_size": self.shape.intermediate_size,
            "rope_parameters": self._rope_parameters(),
            "architectures": [self.family.architecture],
        }
        settings = copy.deepcopy(self.config.to_dict()) | sizes
        return type(self.config)(**settings)

    def _rope_parameters(self) -> dict[str, Any]:
        """As they are, where all pairs stay."""
        rope = rope_of(self.canonical, self.canonical["layer_types"][0])
        if self.shape.qk_head_dim == self.canonical["head_dim"]:
            return copy.deepcopy(rope)
        embedding = rotary_embedding(self.canonical, 0, torch.device("cpu"))
        kept = embedding.inv_freq.double()[self.pairs.cpu()]
        theta = float(rope["rope_theta"])
        places = torch.arange(len(kept), dtype=torch.float64) / len(kept)
        factors = (theta**-places / kept).tolist()
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "factor": 1.0,
            "attention_factor": float(embedding.attention_scaling),
            "original_max_position_embeddings": self.canonical["max_position_embeddings"],
            "short_factor": factors,
            "long_factor": factors,
        }


@dataclass(frozen=True, kw_only=True)
class StockReference:
    """What a written `stock` checkpoint must compute: its own weights in our class."""

    form: StockForm
    config: IntraSliceConfig
    """The compressed model as one of our class."""

    def model(self, directory: Path) -> IntraSliceForCausalLM:
        """Our model with the weights of the files, in float32: the queries' factor taken back."""
        with CheckpointReader(directory) as reader:
            state = {
                canonical: reader.tensor(own).float()
                for canonical, own in self.form.family.outer_names(reader.config).items()
            }
            for layer in range(self.config.num_hidden_layers):
                prefix = self.form.family.layer_prefix(layer)
                for name, tensor in reader.tensors(prefix).items():
                    state[prefix + name] = self._unscaled(name, tensor.float())
        loaded: IntraSliceForCausalLM = IntraSliceForCausalLM.from_pretrained(
            None, config=self.config, state_dict=state, dtype=torch.float32
        )
        return loaded

    def _unscaled(self, name: str, tensor: Tensor) -> Tensor:
        return tensor / self.form.query_factor if name.endswith(_SCALED) else tensor
