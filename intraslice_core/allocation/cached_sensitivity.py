"""Cached sensitivities, which other runs of the same model and calibration measured."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

from torch import Tensor

from intraslice_core.allocation.context import AllocationContext
from intraslice_core.calibration import calibration_hash
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import MEASUREMENT, ModelSensitivity
from intraslice_core.sensitivity.sensitivity_file import load_sensitivity

SENSITIVITY_PREFIX = "sensitivity-"
"""Prefix of the names of cached sensitivities."""


def cached_sensitivity(
    context: AllocationContext, tokens: Tensor, *, with_trial_cuts: bool, with_value_dims: bool
) -> ModelSensitivity | None:
    """Return a cached measurement that has at least these parts."""
    if context.cache is None:
        return None
    for trials, dims in product((True, with_trial_cuts), (True, with_value_dims)):
        name = sensitivity_name(context, tokens, with_trial_cuts=trials, with_value_dims=dims)
        cached = load_sensitivity(context.cache.directory / name)
        if cached is not None:
            return cached
    return None


def sensitivity_name(
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
