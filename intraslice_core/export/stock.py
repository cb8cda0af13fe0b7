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
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.export.form import scaled_queries
from intraslice_core.export.gguf import GgufLayout, llama_layout
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.families.canonical import CanonicalSettings, rope_of, rotary_embedding
from intraslice_core.plan import LayerPlan


@dataclass(frozen=True, kw_only=True)
class StockForm:
    """How one compressed model is written."""

    family: FamilyAdapter
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
        return scaled_queries(canonical, self.query_factor)

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

    def gguf_layout(self) -> GgufLayout:
        """Architecture `llama`."""
        return llama_layout(self.canonical, self.shape, self.pairs)
