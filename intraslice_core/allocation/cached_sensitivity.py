"""Measured sensitivities as a whole: of this run, and of others with its model and calibration."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

from torch import Tensor

from intraslice_core.allocation.context import AllocationContext, SensitivityCache
from intraslice_core.calibration import calibration_hash
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import MEASUREMENT, ModelSensitivity
from intraslice_core.sensitivity.sensitivity_file import load_sensitivity, save_sensitivity

SENSITIVITY_PREFIX = "sensitivity-"
"""Prefix of the names of cached sensitivities."""


def cached_sensitivity(
    context: AllocationContext, tokens: Tensor, *, with_trial_cuts: bool, with_value_dims: bool
) -> ModelSensitivity | None:
    """Return a cached measurement that has at least these parts."""
    for trials, dims in product((True, with_trial_cuts), (True, with_value_dims)):
        name = _name(context, tokens, with_trial_cuts=trials, with_value_dims=dims)
        for cache in _caches(context):
            cached = load_sensitivity(cache.directory / name)
            if cached is not None:
                return cached
    return None


def save_whole_sensitivity(
    context: AllocationContext,
    tokens: Tensor,
    measured: ModelSensitivity,
    *,
    with_trial_cuts: bool,
    with_value_dims: bool,
) -> None:
    """Save a measurement for other runs, if there is room, and for this one.

    A run that shares its sensitivity also has a copy of its own: another machine can resume it, and
    its measured layers are superfluous.
    """
    name = _name(context, tokens, with_trial_cuts=with_trial_cuts, with_value_dims=with_value_dims)
    for cache in _caches(context):
        if cache.has_room(measured.nbytes):
            save_sensitivity(cache.directory / name, measured)
            cache.on_saved(name)


def _caches(context: AllocationContext) -> list[SensitivityCache]:
    """Return the run's own cache, and the one that it shares with others if there is one."""
    state, shared = context.resume_state, context.cache
    caches = [] if state is None else [SensitivityCache.of_run(state)]
    if shared is not None and shared.directory not in [cache.directory for cache in caches]:
        caches.append(shared)
    return caches


def _name(
    context: AllocationContext, tokens: Tensor, *, with_trial_cuts: bool, with_value_dims: bool
) -> str:
    """Return the name of the file that caches a measurement with these parts."""
    key = context.key(
        sensitivity=calibration_hash(tokens),
        prefix_length=context.prefix_length,
        measurement=MEASUREMENT,
        parts=[part.name for part in fields(LayerSensitivity)],
        batch_size=context.config.batch_size,
        trial_cuts=with_trial_cuts,
        value_dims=with_value_dims,
    )
    return f"{SENSITIVITY_PREFIX}{key[:32]}.safetensors"
