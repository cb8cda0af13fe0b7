"""Work of each stage, in a unit proportional to the stage's duration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from intraslice_core.config import (
    Allocator,
    CompressionConfig,
    EvaluationConfig,
    MethodChoice,
)
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.progress import Stage
from intraslice_core.text_sources import WRITTEN

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


_BENCHMARK_TOKENS = 2 * 3 * (256 + 32)
"""Tokens of the speed benchmark: two models, three repeats, prompt and decoded tokens."""

_LOAD_NEW_TOKENS, _LOAD_RUNS = 32, 2 * 7
"""Decoded tokens and runs of one load: each model warms up, is timed five times, and runs once
more for its memory."""

_TRAINING_PASSES = 3
"""Passes of a training step: forward, backward and the gradients of adapters or weights."""

_READ_PARAMETERS = 100_000
"""Parameters that one token could have passed in the time it takes to read a token, roughly.

Makes the rates of jobs that read text comparable to those of jobs whose model writes it.
"""
_EXAMPLE_TOKENS = 200
"""Tokens of a task example: four answers of some 50 tokens, as in ARC and HellaSwag. The number of
examples is known only where it is limited."""


def stage_work(
    params: int,
    layers: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
) -> dict[Stage, float]:
    """Estimate the work of each stage.

    The unit is tokens times parameters where tokens pass the model, and parameters where only
    weights are copied. Stages too short to be worth predicting are left out.

    Args:
        params: number of weights in all layers.
        layers: number of decoder layers of the dense model.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None without one.
    """
    calibration = compression.resolved_calibration
    tokens = calibration.samples * calibration.sequence_length
    written = sum(part.tokens for part in calibration.parts() if part.source in WRITTEN)
    work = {
        Stage.LOAD: float(params),
        Stage.CALIBRATE: float(written) * params + float(tokens - written) * _READ_PARAMETERS,
        Stage.ALLOCATE: _estimator_tokens(layers, compression) * params,
        Stage.COMPRESS: float(tokens) * params,
        Stage.VERIFY: float(params),
        Stage.EXPORT: float(params),
        Stage.PUBLISH: float(params),
    }
    if compression.recover is not None:
        passes = _TRAINING_PASSES + compression.recover.needs_teacher
        work[Stage.RECOVER] = float(passes * compression.recover.max_tokens) * params
    if evaluation is not None:
        work[Stage.EVALUATE] = float(_evaluation_tokens(evaluation)) * params
    return work


def _evaluation_tokens(evaluation: EvaluationConfig) -> int:
    """Count the tokens that pass a model in the evaluation."""
    # Both models score every text; the dense one has to write some of them first.
    passes = sum(3 if text in WRITTEN else 2 for text in evaluation.perplexity)
    scored = passes * evaluation.max_tokens
    benchmark = _BENCHMARK_TOKENS if evaluation.benchmark else 0
    loads = sum(
        point.batch_size * (point.context_length + _LOAD_NEW_TOKENS)
        for point in evaluation.speed_grid
    )
    examples = len(evaluation.tasks) * (evaluation.task_limit or 0)
    return scored + benchmark + _LOAD_RUNS * loads + 2 * _EXAMPLE_TOKENS * examples


def _estimator_tokens(layers: int, compression: CompressionConfig) -> float:
    """Count the tokens that pass all layers before the compression, in equivalent full passes."""
    parts = EstimatorSequences.of(compression)
    free_shapes = compression.target != "research"
    sequences = 3 * parts.gradients + parts.sensitivity + (1 + free_shapes) * parts.trial_fit
    trials = parts.trial_cut_tokens * check_layer_passes(layers) / layers
    # Equation 5 of 2SSP for MLPs with three times the parameters of the attention.
    ratio = 0.3 if compression.ratio is None else compression.ratio
    attentions = parts.attention_tokens * attention_passes(layers, layers * ratio**2) / layers
    removals = parts.layer_tokens * layer_removal_passes(layers, layers * ratio) / layers
    sequences += parts.activations
    plans = (1 + TRIAL_PLANS + 2 * free_shapes) * parts.judged_tokens
    tokens = sequences * compression.calibration.sequence_length
    masks = _TRAINING_PASSES * parts.mask_tokens
    return tokens + trials + plans + attentions + removals + masks
