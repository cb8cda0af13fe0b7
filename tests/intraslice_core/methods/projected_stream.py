"""A dense model at full size whose residual stream is projected on subspaces.

The canonical architecture has the same layers for all families. Nothing shrinks and no basis
changes: at the input of every norm but the final one, hidden states are multiplied by `P Pᵀ`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.intraslice_core.methods.masked_models import Masked, logits


@dataclass
class ProjectedStream:
    """The dense model with projections at its sites: inputs of attention and MLP in each layer."""

    model: nn.Module
    centres: bool
    """True if norms subtract the mean of the hidden states."""
    projections: list[Tensor] = field(default_factory=list)
    """Matrices of the first sites, (hidden_size, hidden_size); the other sites have none yet."""
    seen: dict[int, Tensor] = field(default_factory=dict)
    """Hidden states at each site before its projection, of the last forward pass."""

    @classmethod
    def of(cls, dense: Path, folder: Path) -> ProjectedStream:
        """Convert a checkpoint to the canonical architecture and load it."""
        model: Any = Masked.of(dense, folder).model
        stream = cls(model=model, centres=model.config.norm_type == "layer")
        for number, layer in enumerate(model.model.layers):
            layer.forward = stream._forward_of(number, layer)
        return stream

    def fit(self, widths: list[int], tokens: Tensor) -> None:
        """Add the projection of every site in turn, on what the sites before it let through.

        Right singular vectors of all hidden states at once are the principal components.
        """
        for site, width in enumerate(widths):
            logits(self.model, tokens)
            rows = self.seen[site].flatten(0, 1).double()
            components = torch.linalg.svd(rows).Vh[:width]
            self.projections.append(components.mT @ components)

    def _forward_of(self, number: int, layer: Any):
        scale = layer.residual_scale

        def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            stream = self._at(2 * number, hidden_states)
            normed = layer.input_layernorm(stream)
            attended, _ = layer.self_attn(hidden_states=normed, **kwargs)
            between = self._at(2 * number + 1, stream + scale * attended)
            return between + scale * layer.mlp(layer.post_attention_layernorm(between))

        return forward

    def _at(self, site: int, hidden: Tensor) -> Tensor:
        if self.centres:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        self.seen[site] = hidden
        if site >= len(self.projections):
            return hidden
        return (hidden.double() @ self.projections[site]).float()
