"""Trial compressions: the loss of a plan, measured on few sequences (docs/method.md, section 4)."""

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
"""Number of sequences that a trial refits projections on.

Few are enough, because only differences between plans matter.
"""
_DAMPING_OWN, _DAMPING_CORRECTION = 0.1, 1.0


@dataclass(frozen=True, kw_only=True)
class TrialCompression:
    """Trial compression of a model, with everything that compared plans share."""

    layers: DenseLayers
    fit: Tensor
    """Sequences to refit projections on, (sequences, length), int64."""
    check: Tensor
    """Held-out sequences to measure the loss on, (sequences, length), int64."""
    sensitivity: Sequence[LayerSensitivity]
    method: CompressionMethod
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every sequence."""

    def loss(self, plan: ModelPlan, before_batch: Callable[[float], None]) -> float:
        """Compress with a plan and return the mean next-token loss on `check`, in nats.

        Args:
            plan: sizes to keep.
            before_batch: callback with the finished fraction; may raise to stop.

        Raises:
            NumericalError: if a refit fails, naming the layer and the module.
        """
        hidden = self.layers.memory.copy(self.layers.embed(self.fit))
        states = HiddenStates(
            compressed=hidden,
            dense=self.layers.memory.copy(hidden),
            prefix_length=self.prefix_length,
        )
        check = self.layers.embed(self.check)
        for layer, layer_plan in enumerate(plan.layers):

            def on_progress(done: float, layer: int = layer) -> None:
                before_batch((layer + done) / len(plan.layers))

            context = self._context(layer, hidden.shape[1], on_progress)
            compressor = LayerCompressor(self.layers.weights(layer), layer_plan, states, context)
            sliced = compressor.run().weights
            check = decoder_layer.forward(
                check.to(self.device), sliced, context.settings, context.rotary
            ).to(check.device)
        return mean_loss(self.layers, check, self.check, prefix_length=self.prefix_length)

    def _context(
        self, layer: int, length: int, before_batch: Callable[[float], None]
    ) -> LayerContext:
        """Return the context of a layer's compression with fixed dampings."""
        return LayerContext(
            layer=layer,
            settings=self.layers.settings(layer),
            rotary=self.layers.rotary(layer, length),
            method=replace(
                self.method,
                damping_own=(_DAMPING_OWN,),
                damping_correction=(_DAMPING_CORRECTION,),
            ),
            batch_size=self.batch_size,
            device=self.device,
            stored_dtype=self.stored_dtype,
            before_batch=before_batch,
            sensitivity=self.sensitivity[layer].to(self.device),
        )


CANDIDATES = (
    AttentionCandidate(heads=False, penalty=1.0),
    AttentionCandidate(heads=True, penalty=2.0),
    AttentionCandidate(heads=True, penalty=4.0),
)
"""Candidates that are compared; the first is used where no trial compression is possible."""


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """Shapes of a candidate and the measured loss of the model with them."""

    candidate: AttentionCandidate
    scored: ScoredPlan
    loss: float
    """Loss of the trial compression, in nats per token."""


def search(
    allocate: Callable[[AttentionCandidate], ScoredPlan], loss: Callable[[ModelPlan], float]
) -> tuple[CandidateResult, ...]:
    """Allocate for all candidates and measure each distinct plan once.

    Args:
        allocate: returns the shapes for a candidate.
        loss: returns the loss of a model with the plan's shapes.

    Returns:
        Results in ascending order of loss.

    Raises:
        ConfigurationError: if no candidate has shapes within the budget.
    """
    results: list[CandidateResult] = []
    errors: list[ConfigurationError] = []
    for candidate in CANDIDATES:
        try:
            scored = allocate(candidate)
        except ConfigurationError as error:  # rounding misses the budget with these curves
            errors.append(error)
            continue
        if all(scored.plan != result.scored.plan for result in results):
            measured = loss(scored.plan)
            results.append(CandidateResult(candidate=candidate, scored=scored, loss=measured))
    if not results:
        raise errors[0]
    return tuple(sorted(results, key=lambda result: result.loss))
