"""Search of the plan among candidates (docs/method.md, section 4).

All candidates pass a trial compression together; their divergence on held-out text decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import AllocationCandidate
from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.checkpoints.dense_model import DenseLayers, divergences
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device import return_free_memory
from intraslice_core.errors import ConfigurationError, NumericalError
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.sensitivity.cut_layers import CuttableLayer
from intraslice_core.sensitivity.dense_pass import DensePass, sequences_at_once
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.transfers import device_batches, row_batches

_DAMPING = 0.1
"""Relative damping of the refits, per dimension."""


@dataclass(frozen=True, kw_only=True)
class TrialCompression:
    """Trial compression of a model, with everything that compared plans share.

    All plans pass a layer together. Its weights are read once, and its moments are measured once,
    on the dense hidden states: each plan's shapes are refitted to the layer's own output. Ranks
    divide the sequences and the refits among them.
    """

    layers: DenseLayers
    fit: Tensor
    """Sequences to refit projections on, (sequences, length), int64."""
    check: Tensor
    """Held-out sequences to judge plans on, (sequences, length), int64."""
    kinds: Tensor
    """Number of each held-out sequence's kind of text, (sequences,), int64."""
    sensitivity: Sequence[LayerSensitivity]
    batch_size: int
    device: torch.device
    stored_dtype: torch.dtype
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every sequence."""

    def divergences(
        self, plans: Sequence[ModelPlan], before_batch: Callable[[float], None]
    ) -> tuple[HeldOutDivergence, ...]:
        """Compress with every plan and return the divergences from the dense model on `check`.

        Args:
            plans: sizes to keep.
            before_batch: callback with the finished fraction; may raise to stop.

        Raises:
            NumericalError: if a refit fails, naming the layer.
        """
        ranks, length = self.layers.ranks, self.fit.shape[1]
        plans = ranks.computed(MAIN, lambda: tuple(plans))
        own = ranks.share(len(self.check))
        fit = self.layers.memory.copy(self.layers.embed(self.fit[ranks.share(len(self.fit))]).cpu())
        check = self.layers.embed(self.check[own]).to(self.device)
        # Of the dense model, then of every plan.
        states = [check, *(check.clone() for _ in plans)]
        for layer in range(self.layers.num_layers):
            before_batch(layer / self.layers.num_layers)
            try:
                cuttable = self._cuttable(layer, fit, length)
                states[0] = self._advanced(layer, states[0], cuttable.weights)
                cuts = self._cuts(cuttable, [plan.layers[layer] for plan in plans])
                for number, plan in enumerate(plans):
                    before_batch((layer + (number + 1) / (len(plans) + 1)) / self.layers.num_layers)
                    weights = cuts[plan.layers[layer]]
                    states[number + 1] = self._advanced(layer, states[number + 1], weights)
            except NumericalError as error:
                located = layer if error.layer is None else error.layer
                raise NumericalError(
                    error.message, layer=located, module=error.module, hint=error.hint
                ) from error
            del cuttable, cuts
            return_free_memory()
        tokens = divergences(self.layers, states[0], states[1:], prefix_length=self.prefix_length)
        every = tokens.new_zeros(len(plans), len(self.check), tokens.shape[2])
        every[:, own] = tokens
        ranks.sum_([every])
        return tuple(HeldOutDivergence(tokens=of_plan, kinds=self.kinds) for of_plan in every)

    def _cuts(
        self, cuttable: CuttableLayer, plans: Sequence[LayerPlan]
    ) -> dict[LayerPlan, LayerWeights]:
        """Return the layer with the sizes of each plan; the ranks divide the refits among them."""
        distinct = list(dict.fromkeys(plans))

        def cut(plan: LayerPlan) -> LayerWeights:
            return slicing.rounded_to(cuttable.cut(plan), self.stored_dtype)

        weights = self.layers.ranks.evaluated([partial(cut, plan) for plan in distinct])
        return dict(zip(distinct, weights, strict=True))

    def _cuttable(self, layer: int, fit: Tensor, length: int) -> CuttableLayer:
        """Return the layer with its moments, and advance the hidden states of `fit` past it."""
        dense = DensePass(self.layers, layer, length, self.prefix_length)
        at_once = sequences_at_once(self.batch_size, length, self.device)
        for batch in device_batches(fit, at_once, self.device):
            batch.replace(dense.advance(batch.values))
        dense.join()
        return CuttableLayer(
            weights=dense.weights,
            settings=self.layers.settings(layer),
            sensitivity=self.sensitivity[layer].to(self.device),
            moments=dense.moments,
            damping=_DAMPING,
            per_dimension=True,
        )

    def _advanced(self, layer: int, check: Tensor, weights: LayerWeights) -> Tensor:
        """Return the held-out hidden states after a layer."""
        length, settings = check.shape[1], self.layers.settings(layer)
        rotary = self.layers.rotary(layer, length)
        at_once = sequences_at_once(self.batch_size, length, self.device)
        batches = [
            decoder_layer.forward(check[rows], weights, settings, rotary)
            for rows in row_batches(len(check), at_once)
        ]
        return torch.cat(batches) if batches else check


CANDIDATES = (
    AllocationCandidate(heads=True, penalty=1.4, trial_power=0.5),
    AllocationCandidate(heads=True, penalty=1.0, head_penalty=2.0),
    AllocationCandidate(heads=False, penalty=0.7, trial_power=0.5),
    AllocationCandidate(heads=False, penalty=1.4, trial_power=0.5),
)
"""Candidates that are judged; the first is used where nothing shows another to be better."""


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """Shapes of a candidate and the divergence of the model with them."""

    candidate: AllocationCandidate
    scored: ScoredPlan
    divergence: HeldOutDivergence
    """Divergence of the trial compression."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Comparison of all candidates with one another and with a rival."""

    candidates: tuple[CandidateResult, ...]
    """The chosen candidate's result, then the others in ascending order of score."""
    rival: HeldOutDivergence | None
    """Divergence of the rival plan; None without."""


def search(
    allocate: Callable[[AllocationCandidate], ScoredPlan],
    divergences_of: Callable[[Sequence[ModelPlan]], Sequence[HeldOutDivergence]],
    rival: ModelPlan | None = None,
    ranks: Ranks = ALONE,
) -> SearchResult:
    """Allocate for all candidates, measure their plans together, and choose one.

    A candidate takes the place of an earlier one only if it is better beyond the standard error.

    Args:
        allocate: returns the shapes for a candidate.
        divergences_of: returns the divergences of models with the shapes of plans.
        rival: further plan to measure.
        ranks: those that measure together; the first one allocates.

    Raises:
        ConfigurationError: if no candidate has shapes within the budget.
    """
    judged = ranks.computed(MAIN, lambda: _distinct_plans(allocate))
    plans = [scored.plan for _, scored in judged]
    measured = divergences_of(plans if rival is None else [*plans, rival])
    results = [
        CandidateResult(candidate=candidate, scored=scored, divergence=own)
        for (candidate, scored), own in zip(judged, measured, strict=False)
    ]
    best = _chosen(results)
    others = sorted(
        (result for result in results if result is not best),
        key=lambda result: result.divergence.score,
    )
    return SearchResult(
        candidates=(best, *others), rival=None if rival is None else measured[len(plans)]
    )


def _distinct_plans(
    allocate: Callable[[AllocationCandidate], ScoredPlan],
) -> list[tuple[AllocationCandidate, ScoredPlan]]:
    """Return the candidates with their plans, each plan once.

    Raises:
        ConfigurationError: if no candidate has shapes within the budget.
    """
    allocated: list[tuple[AllocationCandidate, ScoredPlan]] = []
    errors: list[ConfigurationError] = []
    for candidate in CANDIDATES:
        try:
            scored = allocate(candidate)
        except ConfigurationError as error:  # rounding misses the budget with these curves
            errors.append(error)
            continue
        if all(scored.plan != earlier.plan for _, earlier in allocated):
            allocated.append((candidate, scored))
    if not allocated:
        raise errors[0]
    return allocated


def _chosen(results: Sequence[CandidateResult]) -> CandidateResult:
    """Return the first result, or a later one that is better beyond the standard error."""
    best = results[0]
    for result in results[1:]:
        if difference(result.divergence, best.divergence).favours_first:
            best = result
    return best
