"""Comparison of plans by trial compressions, whose results an interrupted run has saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from intraslice_core.allocation.context import AllocationContext
from intraslice_core.allocation.judge import HeldOutDivergence
from intraslice_core.allocation.search import TrialCompression
from intraslice_core.calibration import calibration_hash
from intraslice_core.checkpoints.writer import tensor_digest
from intraslice_core.plan import ModelPlan
from intraslice_core.ranks import MAIN


def compare_plans(
    context: AllocationContext,
    trials: TrialCompression,
    plans: Sequence[ModelPlan],
    before_batch: Callable[[float], None],
) -> tuple[HeldOutDivergence, ...]:
    """Return the divergences of trial compressions from the dense model, saved or measured.

    Args:
        context: inputs of the choice; the main rank alone has a resume state.
        trials: what all plans share.
        plans: sizes to keep.
        before_batch: callback with the finished fraction; may raise to stop.

    Raises:
        NumericalError: if a refit fails, naming the layer.
    """
    state = context.resume_state
    key = "" if state is None else _key(context, trials, plans)
    name = f"comparison-{key[:32]}"

    def restore() -> tuple[HeldOutDivergence, ...] | None:
        saved = None if state is None else state.part(name, key)
        if saved is None:
            return None
        parts = [saved[0][str(number)] for number in range(len(plans))]
        return tuple(HeldOutDivergence(tokens=part, kinds=trials.kinds) for part in parts)

    restored = context.layers.ranks.computed(MAIN, restore)
    if restored is not None:
        return restored
    measured = context.batch.repeat(
        lambda size: replace(trials, batch_size=size).divergences(plans, before_batch)
    )
    if state is not None:
        tensors = {str(number): own.tokens for number, own in enumerate(measured)}
        state.save_part(name, key, tensors, {})
    return measured


def _key(context: AllocationContext, trials: TrialCompression, plans: Sequence[ModelPlan]) -> str:
    """Return the key of everything that the divergences of plans depend on."""
    return context.key(
        comparison=[plan.model_dump(mode="json") for plan in plans],
        config=context.config.model_dump(mode="json", exclude={"devices", "recover"}),
        prefix_length=trials.prefix_length,
        sequences=[calibration_hash(part) for part in (trials.fit, trials.check, trials.kinds)],
        sensitivity=[
            tensor_digest(part.contiguous().cpu())
            for layer in trials.sensitivity
            for part in layer.tensors().values()
        ],
    )
