"""Target `stock`: a compressed model in the dense model's own architecture.

All layers have one shape, q, k and v heads are equally wide, and all heads keep the same rotary
pairs. Two differences are expressed by existing settings and weights (docs/design/targets.md):

* `longrope` factors give the kept pairs their dense frequencies. They divide the frequencies
  `rope_theta^(-j/m)` that the architecture computes for m pairs per head.
* The architecture divides scores by the square root of the new head dim instead of the dense one.
  The queries are multiplied by the quotient of the two.
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
    """Form of a compressed model as a checkpoint of the dense architecture."""

    family: FamilyAdapter
    config: PreTrainedConfig
    """Configuration of the dense model."""
    canonical: CanonicalSettings
    shape: LayerPlan
    """Shape of every layer."""
    pairs: Tensor
    """Kept rotary pairs of every head, (qk_pairs,), ascending."""

    @property
    def query_factor(self) -> float:
        """Return the factor on the queries: √(new head dim / dense head dim)."""
        return float((self.shape.qk_head_dim / self.canonical["head_dim"]) ** 0.5)

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under full canonical names, in their stored dtype."""
        return scaled_queries(canonical, self.query_factor)

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration, of the dense model's class."""
        sizes = {
            "head_dim": self.shape.qk_head_dim,
            "intermediate_size": self.shape.intermediate_size,
            "rope_parameters": self._rope_parameters(),
            "architectures": [self.family.architecture],
        }
        settings = copy.deepcopy(self.config.to_dict()) | sizes
        return type(self.config)(**settings)

    def _rope_parameters(self) -> dict[str, Any]:
        """Return the rotary settings; the dense ones if all pairs are kept."""
        rope = rope_of(self.canonical, self.canonical["layer_types"][0])
        if self.shape.qk_head_dim == self.canonical["head_dim"]:
            return copy.deepcopy(rope)
        embedding = rotary_embedding(self.canonical, 0, torch.device("cpu"))
        frequencies = embedding.inv_freq.double()[self.pairs.cpu()]
        theta = float(rope["rope_theta"])
        exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
        factors = (theta**-exponents / frequencies).tolist()
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
        """Return the layout of a GGUF file of architecture `llama`."""
        return llama_layout(self.canonical, self.shape, self.pairs)
