"""Cheap stage of the search: candidates by predicted loss, without a pass of the model.

A trial compression of one plan costs as much as thousands of tokens through all layers. So many
candidates are allocated, and few of them are judged (docs/method.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import AllocationCandidate, trial_scales
from intraslice_core.sensitivity.measurement import ModelSensitivity

MAX_JUDGED = 3
"""Candidates that are judged, at most: the first of all and those of least predicted loss."""
ATTENTION_WEIGHT = 3.0
"""Factor on attention's predicted losses where candidates are compared.

It lies within the penalties of the candidates themselves. With factors from 2 to 4, predictions
ranked plans of SmolLM2-135M like the judge (rank correlation 0.75 to 0.96).
"""


def comparable_loss(
    measured: ModelSensitivity, candidate: AllocationCandidate, scored: ScoredPlan
) -> float:
    """Return a plan's predicted loss by the same curves for all candidates, in nats per token.

    The curves are scaled by the trial cuts, and attention's by `ATTENTION_WEIGHT`.

    Args:
        measured: sensitivity of all layers, with the trial cuts.
        candidate: candidate that the plan was allocated for.
        scored: its plan with the predicted losses of `lagrangian_shapes`.
    """
    layers = len(scored.layer_losses)
    # A candidate with trial cuts has scaled losses already.
    trials = () if candidate.trial_cuts else measured.trials
    attention, mlp = (trial_scales(trials, module, layers) for module in ("attention", "mlp"))
    return sum(
        ATTENTION_WEIGHT * attention_scale * losses.attention + mlp_scale * losses.mlp
        for losses, attention_scale, mlp_scale in zip(
            scored.layer_losses, attention, mlp, strict=True
        )
    )


def shortlist(losses: Sequence[float], limit: int = MAX_JUDGED) -> list[int]:
    """Return the numbers of the candidates to judge, ascending.

    The first candidate is always among them, and so is the one of least loss.

    Args:
        losses: comparable losses, in the candidates' order.
        limit: number of candidates, at least 2.
    """
    others = sorted(range(1, len(losses)), key=lambda number: losses[number])
    return sorted([0, *others[: limit - 1]])
