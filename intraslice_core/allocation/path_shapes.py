"""Shapes by one order over all units of the model (SPP; docs/methods.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.curves import LayerLosses, ScoredPlan
from intraslice_core.allocation.solution_path import (
    LayerPath,
    measured_path,
    solution_path_plan,
)
from intraslice_core.calibration import calibration_hash
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.files import atomic_file
from intraslice_core.plan import ModelPlan
from intraslice_core.ranks import MAIN
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.mask_training import (
    MaskLayout,
    PathState,
    path_threshold,
    train_path,
)
from intraslice_core.sensitivity.solution_path import (
    UnitRanks,
    with_trained_order,
    without_new_bases,
)

_RANKS = "ranks"


@dataclass(frozen=True, kw_only=True)
class UnitOrder:
    """Order of the units of all layers."""

    layers: tuple[LayerSensitivity, ...]
    """Sensitivity that selects in this order."""
    ranks: tuple[UnitRanks, ...] | None
    """Ranks in a trained order; None where measured losses order the units."""

    def path(self, context: AllocationContext) -> list[LayerPath]:
        """Return the scores of all removals."""
        if self.ranks is not None:
            return [_trained_path(own) for own in self.ranks]
        return [
            measured_path(
                context.geometry,
                layer.pair_losses.numpy(),
                layer.value_losses.numpy(),
                layer.width_losses.numpy(),
            )
            for layer in self.layers
        ]


def unit_order(
    context: AllocationContext,
    tokens: Tensor,
    layers: tuple[LayerSensitivity, ...],
    done_before: float,
) -> UnitOrder:
    """Return the measured order, or the one of trained masks if they are requested.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        layers: sensitivity of all layers, measured with value dimensions.
        done_before: share of the stage's time that is over.

    Raises:
        NumericalError: naming the layer.
    """
    measured = tuple(without_new_bases(layer) for layer in layers)
    config = context.config.mask_training
    if config is None:
        return UnitOrder(layers=measured, ranks=None)
    layout = MaskLayout(geometry=context.geometry)
    # One rank trains: a step takes a single sequence.
    trained_ranks = context.layers.ranks.computed(
        MAIN, lambda: _trained_ranks(context, tokens, config, done_before)
    )
    ranks = layout.ranks(trained_ranks)
    trained = tuple(
        with_trained_order(layer, own) for layer, own in zip(measured, ranks, strict=True)
    )
    return UnitOrder(layers=trained, ranks=ranks)


def path_shapes(context: AllocationContext, order: UnitOrder) -> Shapes:
    """Return the shapes that the first removals of the order leave.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    plan = solution_path_plan(
        context.geometry,
        order.path(context),
        context.budget.parameters,
        round_to=resolve_round_to(context.config, context.geometry),
        module_cap=context.config.module_cap,
        constraint=context.demands.shapes,
    )
    scored = None if order.ranks is not None else _scored(plan, order.layers)
    report = allocation_report(
        context.config.allocation,
        "solution_path",
        scored,
        weighting=None if scored is None else "fisher",
    )
    return Shapes(plan=plan, sensitivity=order.layers, report=report)


def _scored(plan: ModelPlan, layers: tuple[LayerSensitivity, ...]) -> ScoredPlan:
    """Return a plan with its predicted losses."""
    losses = tuple(
        LayerLosses(
            attention=float(layer.pair_losses[own.qk_pairs] + layer.value_losses[own.v_head_dim]),
            mlp=float(layer.width_losses[own.intermediate_size]),
        )
        for own, layer in zip(plan.layers, layers, strict=True)
    )
    return ScoredPlan(plan=plan, layer_losses=losses)


def _trained_path(ranks: UnitRanks) -> LayerPath:
    """Return the scores of a layer's removals: ranks, as mean over the KV heads."""
    return LayerPath(
        pairs=ranks.pairs.sort(dim=-1).values.mean(0).numpy(),
        values=ranks.values.sort(dim=-1).values.mean(0).numpy(),
        neurons=ranks.neurons.sort().values.numpy(),
    )


# -- training ------------------------------------------------------------------------------------


def _trained_ranks(
    context: AllocationContext, tokens: Tensor, config: MaskTrainingConfig, done_before: float
) -> Tensor:
    """Load the ranks from the cache, or train the masks and cache the ranks, (units,)."""
    key = context.key(
        path=calibration_hash(tokens),
        loss="augmented",
        prefix_length=context.prefix_length,
        training=config.model_dump(mode="json"),
    )
    name = f"path-{key[:32]}.safetensors"
    cache = context.cache
    cached = None if cache is None else _load_ranks(cache.directory / name)
    if cached is not None:
        return cached
    ranks = _train(context, tokens, config, key, done_before).ranks()
    if cache is not None and cache.has_room(ranks.nbytes):
        with atomic_file(cache.directory / name) as partial:
            save_file({_RANKS: ranks}, partial)
        cache.on_saved(name)
    return ranks


def _load_ranks(file: Path) -> Tensor | None:
    """Return the file's ranks, (units,); None if it does not exist or is damaged."""
    try:
        return load_file(file)[_RANKS].clone()
    except (FileNotFoundError, SafetensorError):
        return None


def _train(
    context: AllocationContext,
    tokens: Tensor,
    config: MaskTrainingConfig,
    key: str,
    done_before: float,
) -> PathState:
    """Train the masks from the state of an interrupted run, or anew."""
    resume, layout = context.resume_state, MaskLayout(geometry=context.geometry)
    saved = None if resume is None else resume.recovery(key)
    if saved is None:
        state = PathState.start(layout.units, path_threshold(config, tokens.shape[1]))
    else:
        state = PathState.restored(*saved)

    def save(*, at_once: bool) -> None:
        if resume is not None:
            tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
            resume.save_recovery(key, state.step, lambda: tensors, state.facts(), at_once=at_once)

    def before_step() -> None:
        if state.step:
            save(at_once=False)
        done = done_before + (1.0 - done_before) * state.fraction(config)
        try:
            context.before_batch(done, f"training masks, step {state.step + 1}")
        except CompressionCancelledError:
            if state.step:
                save(at_once=True)
            raise

    if not state.is_finished(tokens.shape[1], config):
        train_path(
            context.layers,
            tokens,
            layout,
            config,
            state,
            prefix_length=context.prefix_length,
            before_step=before_step,
        )
        # A run bounded by time must not train again if it is interrupted later.
        save(at_once=True)
    return state
