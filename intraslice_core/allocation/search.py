"""A plan tried on few sequences: what the whole compression would cost in loss, roughly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import AttentionCandidate
from intraslice_core.checkpoints.dense_model import DenseLayers, mean_loss
from intraslice_core.errors import ConfigurationError
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.methods import CompressionMethod
from intraslice_core.plan import ModelPlan
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity

TRIAL_SEQUENCES = 8
"""That the projections are refitted on; what counts is the difference between two plans."""
_OWN, _CORRECTION = 0.1, 1.0


@dataclass(frozen=True, kw_only=True)
class TrialCompression:
    """What all plans of a comparison share."""

    layers: DenseLayers
    fit: Tensor
    """(sequences, length)."""
    check: Tensor
    """(sequences, length): held out."""
    sensitivity: Sequence[LayerSensitivity]
    method: CompressionMethod
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype

    def loss(self, plan: ModelPlan, before_batch: Callable[[float], None]) -> float:
        """Mean next-token loss of the compressed model on `check`, in nats."""
        hidden = self.layers.memory.copy(self.layers.embed(self.fit))
        streams = HiddenStates(compressed=hidden, dense=self.layers.memory.copy(hidden))
        check = self.layers.embed(self.check)
        quick = replace(self.method, damping_own=(_OWN,), damping_correction=(_CORRECTION,))
        for layer, shape in enumerate(plan.layers):
            context = LayerContext(
                layer=layer,
                settings=self.layers.settings(layer),
                rotary=self.layers.rotary(layer, hidden.shape[1]),
                method=quick,
                batch_size=self.batch_size,
                device=self.device,
                stored_dtype=self.stored_dtype,
                before_batch=lambda done, layer=layer: before_batch(  # type: ignore[misc]
                    (layer + done) / len(plan.layers)
                ),
                sensitivity=self.sensitivity[layer].to(self.device),
            )
            weights = self.layers.weights(layer)
            outcome = LayerCompressor(weights, shape, streams, context).run()
            sliced = outcome.weights
            check = decoder_layer.forward(
                check.to(self.device), sliced, context.settings, context.rotary
            ).to(check.device)
        return mean_loss(self.layers, check, self.check)


CANDIDATES = (
    AttentionCandidate(heads=False, price=1.0),
    AttentionCandidate(heads=True, price=2.0),
    AttentionCandidate(heads=True, price=4.0),
)
"""The first is taken where nothing can be rehearsed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Shapes, and the mean loss of the model with them."""

    candidate: AttentionCandidate
    scored: ScoredPlan
    loss: float
    """In nats a token, as rehearsed."""


def search(
    allocate: Callable[[AttentionCandidate], ScoredPlan], loss: Callable[[ModelPlan], float]
) -> tuple[Candidate, ...]:
    """Allocations by all offers, each different plan once, the best first.

    Args:
        allocate: shapes by an offer.
        loss: of a model with such shapes.

    Raises:
        ConfigurationError: if no offer has shapes within the budget.
    """
    found: list[Candidate] = []
    refusals: list[ConfigurationError] = []
    for candidate in CANDIDATES:
        try:
            scored = allocate(candidate)
        except ConfigurationError as error:  # rounding misses the budget by these curves
            refusals.append(error)
            continue
        if all(scored.plan != one.scored.plan for one in found):
            found.append(Candidate(candidate=candidate, scored=scored, loss=loss(scored.plan)))
    if not found:
        raise refusals[0]
    return tuple(sorted(found, key=lambda one: one.loss))
