"""Tokens and layers that pass the dense model before the compression; constants of the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from intraslice_core.config import (
    Allocator,
    CompressionConfig,
    MethodChoice,
)
from intraslice_core.methods import METHODS, resolve_allocator

# The engine's own values, repeated here because its modules import torch; a test compares them.
GROUP_SEQUENCES = 8
TRIAL_PLANS = 5
"""Largest number of plans compared by trial compression: judged candidates and equal layers."""
TRIAL_LAYER_DISTANCE, MAX_TRIAL_LAYERS = 5, 7
TRIALS_PER_LAYER = 4
TRIAL_CUT_TOKENS, TRIAL_CUT_SEQUENCES, TRIAL_CUT_POSITIONS = 2048, 4, 512
MIN_SENSITIVITY_TOKENS, MIN_METRIC_TOKENS = 16_384, 8192
TRIAL_FIT_TOKENS, MAX_JUDGED_TOKENS = 2048, 4096
PAIR_SEQUENCES, PAIR_QUERIES, PAIR_BLOCKS = 8, 64, 4
ATTENTION_TOKENS = 2048
"""Tokens on which the removal of attentions is measured, at most."""
LAYER_TOKENS = 1024
"""Tokens on which the removal of layers is measured, at most."""


@dataclass(frozen=True, kw_only=True)
class EstimatorSequences:
    """Sequences and tokens that pass the dense model before the compression; 0 skips a part."""

    gradients: int
    sensitivity: int
    trial_fit: int
    """Sequences on which trial compressions refit."""
    trial_cut_tokens: int
    """Tokens that every trial cut passes; 0 without trial cuts."""
    judged_tokens: int
    """Tokens on which each of the compared plans is judged."""
    activations: int = 0
    """Sequences whose inner activations or block influences are measured, all passes together."""
    attention_tokens: int = 0
    """Tokens on which attentions are removed one by one; 0 for methods that do not."""
    layer_tokens: int = 0
    """Tokens on which layers are removed one by one; 0 for methods that do not."""
    mask_tokens: int = 0
    """Tokens that masks are trained on, at most; 0 without training."""

    @classmethod
    def of(cls, compression: CompressionConfig) -> EstimatorSequences:
        """Divide the calibration sequences as the method and the allocation require."""
        samples, length = compression.calibration.samples, compression.calibration.sequence_length
        check = min(8, max(samples // 8, 1))
        rest = max(samples - check, 1)

        def first(least_tokens: int, fraction: int) -> int:
            return min(max(-(-least_tokens // length), samples // fraction), rest)

        allocator = resolve_allocator(compression)
        method_measures = (
            METHODS[compression.method].measures_sensitivity and compression.ratio != 0.0
        )
        measures = method_measures or allocator == "lagrangian"
        compares_plans = method_measures and allocator == "lagrangian"
        estimates = allocator in ("fisher", "fisher_pca")
        metric = first(MIN_METRIC_TOKENS, 16) if measures else 0
        estimator = min(max(8, samples // 8), rest) if estimates else 0
        cut = min(check, TRIAL_CUT_SEQUENCES)
        two_stage = allocator == "two_stage" and compression.ratio != 0.0
        attention_tokens = check * min(length, ATTENTION_TOKENS // check)
        removal = METHODS[compression.method].layers
        by_model = removal is not None and removal.influence == "model"
        layer_tokens = check * min(length, max(LAYER_TOKENS // check, 1))
        cut_tokens = cut * min(length, TRIAL_CUT_TOKENS // cut)
        return cls(
            gradients=metric + estimator,
            sensitivity=first(MIN_SENSITIVITY_TOKENS, 8) if measures else 0,
            trial_fit=first(TRIAL_FIT_TOKENS, samples) if compares_plans else 0,
            trial_cut_tokens=cut_tokens if allocator == "lagrangian" else 0,
            judged_tokens=check * min(length, MAX_JUDGED_TOKENS // check) * compares_plans,
            activations=samples * _activation_passes(compression.method, allocator),
            attention_tokens=attention_tokens * two_stage,
            layer_tokens=layer_tokens * (by_model and compression.ratio != 0.0),
            mask_tokens=_mask_tokens(compression),
        )


def _mask_tokens(compression: CompressionConfig) -> int:
    """Return the largest number of tokens that masks are trained on, a sequence at least."""
    training, length = compression.mask_training, compression.calibration.sequence_length
    if training is None or compression.ratio == 0.0:
        return 0
    return max(training.max_tokens // length, 1) * length


def _activation_passes(method: MethodChoice, allocator: Allocator) -> int:
    """Return the passes over the calibration that measure activations or the layers' influence."""
    units = METHODS[method].units
    if units is not None and units.inputs == "dense":
        return units.shots
    return int(allocator == "block_influence")


def trial_layers(layers: int) -> tuple[int, ...]:
    """Return the layers whose modules are cut for trial, evenly spaced."""
    last = layers - 1
    gaps = min(-(-last // TRIAL_LAYER_DISTANCE), MAX_TRIAL_LAYERS - 1)
    return tuple(-(-last * spot // gaps) for spot in range(gaps + 1)) if gaps else (0,)


def check_layer_passes(layers: int) -> int:
    """Count the layers that a token of trial cuts passes, densely and in all trial cuts."""
    return layers + sum(TRIALS_PER_LAYER * (layers - layer) for layer in trial_layers(layers))


def attention_passes(layers: int, removed: float) -> float:
    """Count the layers that a token passes while attentions are removed one by one.

    Each step passes all layers, and without each attention the layers from it on.
    """
    return removed * (layers * (layers + 1) / 2 + layers)


def layer_removal_passes(layers: int, removed: float) -> float:
    """Count the layers that a token passes while layers are removed one by one.

    Each step passes the remaining layers, and without each of them those after it. The last step
    may be a fraction of one: then it is measured for the layer that is narrowed.
    """
    steps = math.ceil(removed - 1e-9)
    return sum((layers - step) * (layers - step + 1) / 2 for step in range(steps))
