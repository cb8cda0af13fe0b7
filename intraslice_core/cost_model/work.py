"""Work of each stage, in a unit proportional to the stage's duration."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.progress import Stage
from intraslice_core.text_sources import WRITTEN

# The engine's own values, repeated here because its modules import torch; a test compares them.
GROUP_SEQUENCES = 8
TRIAL_CALIBRATION = 8
TRIAL_PLANS = 4
"""Largest number of plans compared by trial compression: the allocator's candidates and uniform."""
TRIAL_LAYER_DISTANCE = 5
TRIALS_PER_LAYER = 4
PAIR_SEQUENCES, PAIR_QUERIES = 8, 128


@dataclass(frozen=True, kw_only=True)
class EstimatorSequences:
    """Sequences that pass the dense model before the compression, by purpose; 0 skips a part."""

    gradients: int
    sensitivity: int
    check: int
    trial_compression: int
    """Sequences for each of the compared plans."""

    @classmethod
    def of(cls, compression: CompressionConfig) -> EstimatorSequences:
        """Divide the calibration sequences as the method and the allocation require."""
        samples = compression.calibration.samples
        check = min(8, max(samples // 8, 1))
        rest = max(samples - check, 1)
        gradients = min(max(8, samples // 8), rest)
        sensitivity = min(max(32, samples // 4), rest)
        allocator = resolve_allocator(compression)
        method_measures = (
            METHODS[compression.method].measures_sensitivity and compression.ratio != 0.0
        )
        measures = method_measures or allocator == "lagrangian"
        compares_plans = method_measures and allocator == "lagrangian"
        return cls(
            gradients=gradients if measures or allocator != "uniform" else 0,
            sensitivity=sensitivity if measures else 0,
            check=check if measures else 0,
            trial_compression=min(TRIAL_CALIBRATION, sensitivity) if compares_plans else 0,
        )


def trial_layers(layers: int) -> tuple[int, ...]:
    """Return the indices of the layers whose modules are cut for trial."""
    return tuple(sorted({*range(0, layers, TRIAL_LAYER_DISTANCE), layers - 1}))


def check_layer_passes(layers: int) -> int:
    """Count the layers that a check sequence passes, densely and in all trial cuts."""
    return layers + sum(TRIALS_PER_LAYER * (layers - layer) for layer in trial_layers(layers))


_BENCHMARK_TOKENS = 2 * 3 * (256 + 32)
"""Tokens of the speed benchmark: two models, three repeats, prompt and decoded tokens."""

_LOAD_NEW_TOKENS, _LOAD_RUNS = 32, 2 * 7
"""Decoded tokens and runs of one load: each model warms up, is timed five times, and runs once
more for its memory."""

_TRIAL_PASSES = 4
"""Passes of a trial compression through a layer: dense (on both hidden states), pruned, sliced."""

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
    trials = parts.check * check_layer_passes(layers) / layers
    free_shapes = compression.target != "research"
    plans = (TRIAL_PLANS + free_shapes) * (
        _TRIAL_PASSES * parts.trial_compression + parts.check * bool(parts.trial_compression)
    )
    sequences = 3 * parts.gradients + parts.sensitivity + trials + plans
    return sequences * compression.calibration.sequence_length
