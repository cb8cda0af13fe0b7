"""How much each stage has to do, in a unit that its duration grows with."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.progress import Stage
from intraslice_core.text_sources import WRITTEN

GROUP_SEQUENCES = 8
TRIAL_CALIBRATION = 8
TRIAL_PLANS = 4
"""At most: those of the allocator, and equal layers."""
SPOT_DISTANCE = 5
TRIALS_A_SPOT = 4
PAIR_SEQUENCES, PAIR_QUERIES = 8, 128


@dataclass(frozen=True, kw_only=True)
class EstimatorSequences:
    """Sequences that pass the dense model before anything is compressed; 0 leaves a part out."""

    gradients: int
    learning: int
    check: int
    trial_compression: int
    """Of each of the plans that are compared."""

    @classmethod
    def of(cls, compression: CompressionConfig) -> EstimatorSequences:
        """As the method and the allocation have it."""
        samples = compression.calibration.samples
        checks = min(8, max(samples // 16, 1))
        rest = max(samples - checks, 1)
        gradients, learning = (
            min(max(8, samples // 8), rest),
            min(max(32, samples // 4), rest),
        )
        learns = METHODS[compression.method].measures_sensitivity and compression.ratio != 0.0
        allocator = resolve_allocator(compression)
        walks = learns or allocator == "lagrangian"
        return cls(
            gradients=gradients if walks or allocator != "uniform" else 0,
            learning=learning if walks else 0,
            check=checks if walks else 0,
            trial_compression=min(TRIAL_CALIBRATION, learning)
            if learns and allocator == "lagrangian"
            else 0,
        )


def spots(layers: int) -> tuple[int, ...]:
    """Layers whose modules are cut for trial."""
    return tuple(sorted({*range(0, layers, SPOT_DISTANCE), layers - 1}))


def stream_layers(layers: int) -> int:
    """Layers that the dense check stream and all trials pass, added up."""
    return layers + sum(TRIALS_A_SPOT * (layers - spot) for spot in spots(layers))


_BENCHMARK_TOKENS = 2 * 3 * (256 + 32)
"""Both models, three repeats, prompt and answer."""

_LOAD_NEW_TOKENS, _LOAD_RUNS = 32, 2 * 7
"""Of a load of the grid: both models warm up, are timed five times, and once for their memory."""

_TRIAL_PASSES = 4
"""Dense, pruned and sliced, on either stream."""

_TRAINING_PASSES = {"ce": 3, "distill": 4}
"""Forward, backward and what adapters add; the teacher's forward."""

_READING = 100_000
"""Parameters that a token could have passed in the time that reading one takes, roughly: so that
rates of jobs that read and of jobs that let the model write are of one kind."""
_EXAMPLE_TOKENS = 200
"""Of a task's example: four answers of some 50 tokens, as ARC and HellaSwag have them. How many
examples there are is known only where they are limited."""


def stage_work(
    params: int,
    layers: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
) -> dict[Stage, float]:
    """Tokens times parameters where tokens pass the model; parameters where only weights move.

    Stages that are not in it are not worth predicting.

    Args:
        params: weights of all layers.
        layers: of the dense model; trials pass those behind them.
        compression: what is asked for.
        evaluation: what is measured, if anything.
    """
    calibration = compression.calibration
    tokens = calibration.samples * calibration.sequence_length
    written = sum(part.tokens for part in calibration.parts() if part.source in WRITTEN)
    work = {
        Stage.LOAD: float(params),
        Stage.CALIBRATE: float(written) * params + float(tokens - written) * _READING,
        Stage.ALLOCATE: _estimator_tokens(layers, compression) * params,
        Stage.COMPRESS: float(tokens) * params,
        Stage.VERIFY: float(params),
        Stage.EXPORT: float(params),
        Stage.PUBLISH: float(params),
    }
    if compression.recover is not None:
        passes = _TRAINING_PASSES[compression.recover.loss]
        work[Stage.RECOVER] = float(passes * compression.recover.max_tokens) * params
    if evaluation is not None:
        # Both models score every text; the dense one has to write some of them first.
        passes = sum(3 if text in WRITTEN else 2 for text in evaluation.perplexity)
        scored = passes * evaluation.max_tokens
        benchmark = _BENCHMARK_TOKENS if evaluation.benchmark else 0
        loads = sum(
            one.batch_size * (one.context_length + _LOAD_NEW_TOKENS)
            for one in evaluation.speed_grid
        )
        examples = len(evaluation.tasks) * (evaluation.task_limit or 0)
        tokens = scored + benchmark + _LOAD_RUNS * loads + 2 * _EXAMPLE_TOKENS * examples
        work[Stage.EVALUATE] = float(tokens) * params
    return work


def _estimator_tokens(layers: int, compression: CompressionConfig) -> float:
    """Tokens that pass all layers, or as many of them as come to the same."""
    parts = EstimatorSequences.of(compression)
    trials = parts.check * stream_layers(layers) / layers
    free_shapes = compression.target != "research"
    plans = (TRIAL_PLANS + free_shapes) * (
        _TRIAL_PASSES * parts.trial_compression + parts.check * bool(parts.trial_compression)
    )
    sequences = 3 * parts.gradients + parts.learning + trials + plans
    return sequences * compression.calibration.sequence_length
