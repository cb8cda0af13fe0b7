"""Shapes and selections of DISP-LLM by a trained hypernetwork (docs/methods.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.uniform import require_budget
from intraslice_core.calibration import calibration_hash
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.errors import BudgetOutOfReachError, CompressionCancelledError
from intraslice_core.files import atomic_file
from intraslice_core.methods import resolve_allocator
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, ResidualParts
from intraslice_core.ranks import MAIN
from intraslice_core.selection.residual_parts import ResidualPartSelections
from intraslice_core.sensitivity.hypernetwork import HypernetworkTraining, TrainedLogits

_BISECTIONS = 60


def trained_residual_parts(
    context: AllocationContext, tokens: Tensor, uniform: Callable[[], ModelPlan]
) -> Shapes:
    """Train the hypernetwork and select by its logits.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        uniform: returns the plan of equal layers, for the allocation `uniform`.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        NumericalError: naming the layer.
    """
    config = context.config.mask_training
    assert config is not None
    # One rank trains: a step takes a single sequence.
    logits = context.layers.ranks.computed(MAIN, lambda: _trained_logits(context, tokens, config))
    allocator, budget = resolve_allocator(context.config), context.budget.parameters
    if allocator == "hypernetwork":
        step = resolve_round_to(context.config, context.geometry)
        plan = hypernetwork_plan(context.geometry, logits, budget, step)
        require_budget(plan, context.geometry, budget, context.demands.shapes.tolerance)
    else:
        plan = uniform()
    selections = tuple(
        _selections(own, layer) for own, layer in zip(logits, plan.layers, strict=True)
    )
    report = allocation_report(context.config.allocation, allocator)
    return Shapes(plan=plan, sensitivity=None, report=report, residual_parts=selections)


def hypernetwork_plan(
    geometry: ModelGeometry, logits: Sequence[TrainedLogits], budget: int, round_to: int
) -> ModelPlan:
    """Return the plan of one threshold for the logits of all selections.

    Sizes are rounded down, and MLP widths of highest next logits take the rest of the budget.

    Args:
        geometry: of the dense model.
        logits: of all layers.
        budget: maximum compressible parameters of all layers.
        round_to: rounding step.

    Raises:
        BudgetOutOfReachError: if one step of every dimension exceeds the budget.
    """
    values = torch.cat([getattr(own, part.name) for own in logits for part in fields(own)])
    low, high = float(values.min()) - 1.0, float(values.max()) + 1.0
    smallest = _at_threshold(geometry, logits, high, round_to)
    if smallest.parameters(geometry) > budget:
        raise BudgetOutOfReachError(
            f"the budget keeps {budget:,} compressible parameters, but "
            f"{smallest.parameters(geometry):,} cannot be removed",
            field="compression.ratio",
            hint="remove less, or choose a smaller round_to",
        )
    plan = _at_threshold(geometry, logits, low, round_to)
    if plan.parameters(geometry) <= budget:
        return plan
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if _at_threshold(geometry, logits, middle, round_to).parameters(geometry) <= budget:
            high = middle
        else:
            low = middle
    return _with_rest(
        geometry, logits, _at_threshold(geometry, logits, high, round_to), budget, round_to
    )


def _at_threshold(
    geometry: ModelGeometry, logits: Sequence[TrainedLogits], threshold: float, round_to: int
) -> ModelPlan:
    """Return the sizes of logits above a threshold, rounded down to at least one step."""

    def size(selection: Tensor) -> int:
        count = int((selection > threshold).sum())
        if count == len(selection):
            return count
        return min(max(math.floor(count / round_to), 1) * round_to, len(selection))

    return ModelPlan(
        layers=tuple(
            geometry.dense_layer().model_copy(
                update={
                    "intermediate_size": size(own.neurons),
                    "residual_parts": ResidualParts(
                        attention_reads=size(own.attention_reads),
                        attention_writes=size(own.attention_writes),
                        mlp_reads=size(own.mlp_reads),
                        mlp_writes=size(own.mlp_writes),
                    ),
                }
            )
            for own in logits
        )
    )


def _with_rest(
    geometry: ModelGeometry,
    logits: Sequence[TrainedLogits],
    plan: ModelPlan,
    budget: int,
    round_to: int,
) -> ModelPlan:
    """Return the plan with the neurons of highest logits that the rest of the budget allows."""
    layers, left = list(plan.layers), budget - plan.parameters(geometry)
    ranked = [own.neurons.sort(descending=True).values for own in logits]
    while True:
        candidates = []
        for number, layer in enumerate(layers):
            width = min(layer.intermediate_size + round_to, geometry.intermediate_size)
            wider = layer.model_copy(update={"intermediate_size": width})
            cost = wider.parameters(geometry) - layer.parameters(geometry)
            if 0 < cost <= left:
                value = float(ranked[number][layer.intermediate_size])
                candidates.append((value, number, wider, cost))
        if not candidates:
            return ModelPlan(layers=tuple(layers))
        _, number, wider, cost = max(candidates, key=lambda candidate: candidate[:2])
        layers[number] = wider
        left -= cost


def _selections(logits: TrainedLogits, layer: LayerPlan) -> ResidualPartSelections:
    """Return the dimensions of highest logits, ascending."""

    def highest(selection: Tensor, keep: int) -> Tensor:
        return selection.argsort(descending=True, stable=True)[:keep].sort().values

    sizes = layer.residual_parts
    assert sizes is not None
    return ResidualPartSelections(
        attention_reads=highest(logits.attention_reads, sizes.attention_reads),
        attention_writes=highest(logits.attention_writes, sizes.attention_writes),
        mlp_reads=highest(logits.mlp_reads, sizes.mlp_reads),
        mlp_writes=highest(logits.mlp_writes, sizes.mlp_writes),
        neurons=highest(logits.neurons, layer.intermediate_size),
    )


# -- training ------------------------------------------------------------------------------------


def _trained_logits(
    context: AllocationContext, tokens: Tensor, config: MaskTrainingConfig
) -> tuple[TrainedLogits, ...]:
    """Load the logits from the cache, or train and cache them."""
    key = context.key(
        hypernetwork=calibration_hash(tokens),
        prefix_length=context.prefix_length,
        training=config.model_dump(mode="json"),
        ratio=context.budget.ratio,
    )
    cache, name = context.cache, f"hypernetwork-{key[:32]}.safetensors"
    cached = None if cache is None else _load(cache.directory / name)
    if cached is not None:
        return cached
    logits = _train(context, tokens, config, key)
    tensors = {
        f"{number}.{part.name}": getattr(own, part.name).contiguous()
        for number, own in enumerate(logits)
        for part in fields(own)
    }
    if cache is not None and cache.has_room(sum(part.nbytes for part in tensors.values())):
        with atomic_file(cache.directory / name) as partial:
            save_file(tensors, partial)
        cache.on_saved(name)
    return logits


def _load(file: Path) -> tuple[TrainedLogits, ...] | None:
    """Return the file's logits; None if it does not exist or is damaged."""
    try:
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, part in tensors.items():
        number, _, field = name.partition(".")
        layers.setdefault(int(number), {})[field] = part.clone()
    return tuple(TrainedLogits(**layers[number]) for number in sorted(layers))


def _train(
    context: AllocationContext, tokens: Tensor, config: MaskTrainingConfig, key: str
) -> tuple[TrainedLogits, ...]:
    """Train from the state of an interrupted run, or anew."""
    resume = context.resume_state
    training = HypernetworkTraining(context.geometry, 1.0 - context.budget.ratio, config)
    saved = None if resume is None else resume.recovery(key)
    if saved is not None:
        training.restore(*saved)

    def save(*, at_once: bool) -> None:
        if resume is not None:
            progress = training.progress
            resume.save_recovery(
                key, progress.step, training.tensors, progress.facts(), at_once=at_once
            )

    def before_step() -> None:
        if training.progress.step:
            save(at_once=False)
        message = f"training the hypernetwork, step {training.progress.step + 1}"
        try:
            context.before_batch(training.progress.fraction(config), message)
        except CompressionCancelledError:
            if training.progress.step:
                save(at_once=True)
            raise

    if not training.progress.is_finished(tokens.shape[1], config):
        training.run(
            context.layers,
            tokens,
            prefix_length=context.prefix_length,
            before_step=before_step,
        )
        save(at_once=True)  # a run bounded by time must not train again if interrupted later
    return training.logits()
