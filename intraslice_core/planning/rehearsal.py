"""A plan tried on few sequences: what the whole compression would cost in loss, roughly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import block
from intraslice_core.choices import LayerKnowledge
from intraslice_core.dense_layers import DenseLayers, mean_loss
from intraslice_core.layer import LayerCompressor, LayerContext, Streams
from intraslice_core.plan import ModelPlan
from intraslice_core.presets import MethodPreset

SEQUENCES = 8
"""That the projections are refitted on; what counts is the difference between two plans."""
_OWN, _CORRECTION = 0.1, 1.0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What all plans of a comparison share."""

    layers: DenseLayers
    fit: Tensor
    """(sequences, length)."""
    check: Tensor
    """(sequences, length): held out."""
    knowledge: Sequence[LayerKnowledge]
    preset: MethodPreset
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype

    def loss(self, plan: ModelPlan, before_batch: Callable[[float], None]) -> float:
        """Mean next-token loss of the compressed model on `check`, in nats."""
        hidden = self.layers.memory.copy(self.layers.embed(self.fit))
        streams = Streams(compressed=hidden, dense=self.layers.memory.copy(hidden))
        check = self.layers.embed(self.check)
        quick = replace(self.preset, damping_own=(_OWN,), damping_correction=(_CORRECTION,))
        for layer, shape in enumerate(plan.layers):
            context = LayerContext(
                layer=layer,
                settings=self.layers.settings(layer),
                rotary=self.layers.rotary(layer, hidden.shape[1]),
                preset=quick,
                batch_size=self.batch_size,
                device=self.device,
                stored_dtype=self.stored_dtype,
                before_batch=lambda done, layer=layer: before_batch(  # type: ignore[misc]
                    (layer + done) / len(plan.layers)
                ),
                knowledge=self.knowledge[layer].to(self.device),
            )
            weights = self.layers.weights(layer)
            outcome = LayerCompressor(weights, shape, streams, context).run()
            sliced = outcome.weights
            check = block.behind(
                check.to(self.device), sliced, context.settings, context.rotary
            ).to(check.device)
        return mean_loss(self.layers, check, self.check)
