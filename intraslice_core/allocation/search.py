"""Trial compressions: plans judged on few sequences (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import AllocationCandidate
from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.checkpoints.dense_model import DenseLayers, divergences
from intraslice_core.decoder_layer import LayerWeights, Rotary
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
    """Held-out sequences to judge plans on, (sequences, length), int64."""
    kinds: Tensor
    """Number of each held-out sequence's kind of text, (sequences,), int64."""
    sensitivity: Sequence[LayerSensitivity]
    method: CompressionMethod
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every sequence."""

    @cached_property
    def _dense(self) -> Tensor:
        """Output of the dense model's last layer on `check`."""
        check = self.layers.embed(self.check)
        for layer in range(self.layers.num_layers):
            rotary = self.layers.rotary(layer, check.shape[1])
            check = self._advanced(check, self.layers.weights(layer), layer, rotary)
        return check

    def _advanced(self, check: Tensor, weights: LayerWeights, layer: int, rotary: Rotary) -> Tensor:
        """Return the held-out hidden states after a layer, on their device."""
        settings = self.layers.settings(layer)
        batches = [
            decoder_layer.forward(rows.to(self.device), weights, settings, rotary)
            for rows in torch.split(check, self.batch_size)
        ]
        return torch.cat(batches).to(check.device)

    def divergence(
        self, plan: ModelPlan, before_batch: Callable[[float], None]
    ) -> HeldOutDivergence:
        """Compress with a plan and return the divergence from the dense model on `check`.

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
            check = self._advanced(check, sliced, layer, context.rotary)
        tokens = divergences(self.layers, self._dense, check, prefix_length=self.prefix_length)
        return HeldOutDivergence(tokens=tokens, kinds=self.kinds)

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
    AllocationCandidate(heads=True, penalty=2.0),
    AllocationCandidate(heads=True, penalty=4.0, trial_cuts=False),
    AllocationCandidate(heads=True, penalty=4.0, trial_cuts=False, early_mlp_penalty=4.0),
)
"""Candidates that are compared; the first is used where nothing shows another to be better.

The third spares early MLPs, on which the following layers depend on text of every kind.
"""


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """Shapes of a candidate and the divergence of the model with them."""

    candidate: AllocationCandidate
    scored: ScoredPlan
    divergence: HeldOutDivergence
    """HeldOutDivergence of the trial compression."""


def search(
    allocate: Callable[[AllocationCandidate], ScoredPlan],
    divergence: Callable[[ModelPlan], HeldOutDivergence],
) -> tuple[CandidateResult, ...]:
    """Allocate for all candidates, measure each distinct plan once, and choose one.

    A candidate takes the place of an earlier one only if it is better beyond the standard error.

    Args:
        allocate: returns the shapes for a candidate.
        divergence: returns the divergence of a model with the plan's shapes.

    Returns:
        The chosen candidate's result, followed by the others in ascending order of score.

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
            measured = divergence(scored.plan)
            results.append(CandidateResult(candidate=candidate, scored=scored, divergence=measured))
    if not results:
        raise errors[0]
    best = _chosen(results)
    others = (result for result in results if result is not best)
    return (best, *sorted(others, key=lambda result: result.divergence.score))


def _chosen(results: Sequence[CandidateResult]) -> CandidateResult:
    """Return the first result, or a later one that is better beyond the standard error."""
    best = results[0]
    for result in results[1:]:
        if difference(result.divergence, best.divergence).favours_first:
            best = result
    return best
