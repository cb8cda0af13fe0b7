"""Expected duration of each stage on a reference machine, for shares of progress.

Only proportions matter: the run itself shows how fast its machine is, and `stage_speeds` keeps what
earlier runs have shown. The amounts of work follow from shapes and settings. The rates are those of
one thread of a CPU with AVX-512, fitted to two runs of SmolLM2-135M (`benchmarks/progress.py`), or
of a class of GPUs (`rates`); constants of this module are of the former in both cases.

Several devices shorten what they divide: text that the model writes, the allocation, and the passes
of the compression. What they send each other is neglected; `parallel` models it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intraslice_core.config import CompressionConfig, EvaluationConfig, RecoveryConfig
from intraslice_core.cost_model.flops import StageFlops, stage_flops
from intraslice_core.cost_model.memory import (
    cache_bytes_per_token,
    written_at_once,
    written_sequences,
)
from intraslice_core.cost_model.rates import REFERENCE_RATES, MachineRates
from intraslice_core.plan import ModelGeometry, dense_parameters
from intraslice_core.progress import Stage
from intraslice_core.text_sources import WRITTEN
from intraslice_core.writing import count_steps

_BYTES = 0.3e9
"""Bytes per second of reading, hashing and writing weights."""
_UPLOAD_PASSES = 3
"""Times that an uploaded byte is hashed, sent or read back."""
_TEXT_TOKENS = 20_000.0
"""Tokens per second of reading and tokenizing text."""
_LEAST_ITEM_BYTES = 2
"""Least bytes of a cached key or value, which has the compute dtype."""
_PROCESS = 3.5
"""Seconds until a clean process has imported torch and transformers."""
_LAYER = 0.03
"""Seconds of a layer's small operations in one trial or compression."""
_VERIFIED_RUNS = 2 * 3
"""Prompts that verification answers, in float32: three here and three in the process."""
_VERIFIED_PROMPT, _VERIFIED_DECODED = 32, 16
_SPEED_RUNS = 2 * 2 * 4
"""Runs of the speed benchmark: two models, with and without stopwatch, four times."""
_SPEED_PROMPT, _SPEED_DECODED = 256, 32
_LOAD_RUNS = 2 * 7
_LOAD_DECODED = 32
_CONTINUATION_TOKENS = 48
_EXAMPLE_TOKENS = 200
_EXAMPLES = 1000
"""Examples of a task without a limit, roughly."""
_TRAINING_PASSES = {"ce": 3.0, "distill": 4.0}


@dataclass(frozen=True, kw_only=True)
class AllocationSeconds:
    """Expected seconds of the parts of the allocation, in order."""

    gradients: float
    sensitivity: float
    trial_compression: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.gradients + self.sensitivity + self.trial_compression

    def finished(self, done: float, ends: tuple[float, float]) -> float:
        """Return the finished fraction of the time, from the fraction that the allocation reports.

        Args:
            done: reported fraction, in which every part has a fixed share.
            ends: reported fractions at the end of the gradients and of the sensitivity.
        """
        if not self.sensitivity:
            return done
        parts: tuple[float, ...] = (self.gradients, self.sensitivity)
        bounds: tuple[float, ...] = (0.0, ends[0] / ends[1], 1.0)
        if self.trial_compression:
            parts, bounds = (*parts, self.trial_compression), (0.0, *ends, 1.0)
        seconds = sum(
            part * min(max((done - begin) / (end - begin), 0.0), 1.0)
            for part, begin, end in zip(parts, bounds, bounds[1:], strict=False)
        )
        return seconds / self.total


@dataclass(frozen=True, kw_only=True)
class EvaluationSeconds:
    """Expected seconds of the parts of the evaluation, in order."""

    dense: float
    compressed: float
    speed: float

    @property
    def parts(self) -> tuple[float, float, float]:
        """Return the parts in order."""
        return self.dense, self.compressed, self.speed

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts)


@dataclass(frozen=True, kw_only=True)
class ExpectedDurations:
    """Expected seconds of a run's stages on the reference machine, and of the parts of some."""

    stages: Mapping[Stage, float]
    allocation: AllocationSeconds
    evaluation: EvaluationSeconds | None


def expected_durations(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    item_bytes: int,
    *,
    verify: bool = True,
    uploads: bool = False,
    rates: MachineRates = REFERENCE_RATES,
) -> ExpectedDurations:
    """Estimate the durations of a run and of the parts of its stages.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None without one.
        item_bytes: bytes of a stored weight.
        verify: the result is loaded in a clean process.
        uploads: the result is hashed, sent to a store and read back.
        rates: of the machine.
    """
    stages = stage_seconds(geometry, compression, evaluation, item_bytes, rates)
    if not verify:
        del stages[Stage.VERIFY]
    if not uploads:
        del stages[Stage.PUBLISH]
    return ExpectedDurations(
        stages=stages,
        allocation=allocation_seconds(geometry, compression, rates),
        evaluation=None
        if evaluation is None
        else evaluation_seconds(geometry, evaluation, item_bytes, rates),
    )


def stage_seconds(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    item_bytes: int,
    rates: MachineRates = REFERENCE_RATES,
) -> dict[Stage, float]:
    """Estimate the seconds of each stage.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None without one.
        item_bytes: bytes of a stored weight.
        rates: of the machine.
    """
    flops = stage_flops(geometry, compression)
    weights = dense_parameters(geometry)
    copying = weights * item_bytes / _BYTES
    seconds = {
        Stage.LOAD: 0.05 + copying / 10,
        Stage.CALIBRATE: calibration_seconds(geometry, compression, item_bytes, rates),
        Stage.ALLOCATE: allocation_seconds(geometry, compression, rates).total,
        Stage.COMPRESS: _compress(flops, geometry, rates) + copying,
        Stage.VERIFY: _verify(geometry, item_bytes, len(compression.gguf_formats), rates),
        Stage.EXPORT: 0.02 + copying / 10,
        Stage.PUBLISH: 0.1 + _UPLOAD_PASSES * copying * (1.0 - (compression.ratio or 0.0)),
    }
    if compression.recover is not None:
        seconds[Stage.RECOVER] = _recover(geometry, compression.recover, rates)
    if evaluation is not None:
        seconds[Stage.EVALUATE] = evaluation_seconds(geometry, evaluation, item_bytes, rates).total
    return seconds


def allocation_seconds(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    rates: MachineRates = REFERENCE_RATES,
) -> AllocationSeconds:
    """Estimate the seconds of the allocation's parts."""
    flops = stage_flops(geometry, compression)
    layers = geometry.num_hidden_layers * _LAYER
    trials = 4 * layers if flops.trial_compression else 0.0
    return AllocationSeconds(
        gradients=flops.gradients / rates.products,
        sensitivity=flops.sensitivity / rates.products
        + flops.sensitivity_factorisations / rates.eliminations
        + (layers if flops.sensitivity else 0.0),
        # Nothing else precedes the measurement of units, so that its progress is linear in time.
        trial_compression=(flops.trial_compression + flops.units + flops.masks) / rates.products
        + flops.trial_factorisations / rates.factorisations
        + trials,
    )


def evaluation_seconds(
    geometry: ModelGeometry,
    evaluation: EvaluationConfig,
    item_bytes: int,
    rates: MachineRates = REFERENCE_RATES,
) -> EvaluationSeconds:
    """Estimate the seconds of the evaluation's parts."""
    rate, step = _tokens_per_second(geometry, rates), _decoding_step(geometry, item_bytes, rates)
    length = min(evaluation.context_length, evaluation.max_tokens)
    sources = sum(source in WRITTEN for source in evaluation.perplexity)
    windows = (evaluation.max_tokens // length, length)
    written = sources * writing_seconds(geometry, [windows], item_bytes, rates)
    examples = len(evaluation.tasks) * (evaluation.task_limit or _EXAMPLES)
    tokens = len(evaluation.perplexity) * evaluation.max_tokens + examples * _EXAMPLE_TOKENS
    scored = 0.1 + tokens / rate + len(evaluation.prompts) * _CONTINUATION_TOKENS * step
    run = _SPEED_PROMPT / rate + _SPEED_DECODED * step
    loads = sum(
        point.batch_size * (point.context_length + _LOAD_DECODED) / rate + _LOAD_DECODED * step
        for point in evaluation.speed_grid
    )
    timed = _SPEED_RUNS * run * evaluation.benchmark + _LOAD_RUNS * loads
    return EvaluationSeconds(
        dense=scored + written,
        compressed=scored,
        speed=_PROCESS + timed if timed else 0.0,
    )


def judging_seconds(geometry: ModelGeometry, tokens: int, item_bytes: int) -> float:
    """Estimate the seconds of loading a model and scoring tokens by it."""
    copying = dense_parameters(geometry) * item_bytes / _BYTES
    return 0.05 + copying / 10 + tokens / _tokens_per_second(geometry, REFERENCE_RATES)


def calibration_seconds(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    item_bytes: int,
    rates: MachineRates = REFERENCE_RATES,
    *,
    beside: Sequence[tuple[int, int]] = (),
) -> float:
    """Estimate the seconds of reading and writing calibration and fine-tuning text.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        item_bytes: bytes of a stored weight.
        rates: of the machine.
        beside: numbers and lengths of other sequences that the model writes in the same batches.
    """
    parts = list(compression.resolved_calibration.parts())
    sequences = [
        (math.ceil(number / compression.devices), length)
        for number, length in (*written_sequences(parts), *beside)
    ]
    written = writing_seconds(geometry, sequences, item_bytes, rates)
    if compression.recover is not None:
        training = compression.recover.text(compression.calibration).parts()
        for part in training:
            written += writing_seconds(geometry, written_sequences([part]), item_bytes, rates)
        parts += training
    read = sum(part.tokens for part in parts if part.source not in WRITTEN)
    return 0.25 + read / _TEXT_TOKENS + written


def writing_seconds(
    geometry: ModelGeometry,
    sequences: Sequence[tuple[int, int]],
    item_bytes: int,
    rates: MachineRates = REFERENCE_RATES,
) -> float:
    """Return the seconds in which the dense model writes sequences, all in the same batches.

    At every step the weights are read once for all sequences of a batch, and the keys and values
    of each of them.

    Args:
        geometry: dimensions of the dense model.
        sequences: numbers of sequences, and their lengths.
        item_bytes: bytes of a stored weight.
        rates: of the machine.
    """
    token = cache_bytes_per_token(geometry, max(item_bytes, _LEAST_ITEM_BYTES))
    steps = count_steps(sequences, lambda length: written_at_once(length * token))
    tokens = sum(rows * length for rows, length in sequences)
    cached = sum(rows * length * (length - 1) // 2 for rows, length in sequences)
    return (
        tokens / _tokens_per_second(geometry, rates)
        + steps * _decoding_step(geometry, item_bytes, rates)
        + cached * token / rates.memory
    )


def _decoding_step(geometry: ModelGeometry, item_bytes: int, rates: MachineRates) -> float:
    """Return the seconds in which all weights are read from memory once."""
    return _passed_weights(geometry) * item_bytes / rates.memory


def _verify(
    geometry: ModelGeometry, item_bytes: int, gguf_files: int, rates: MachineRates
) -> float:
    copying = dense_parameters(geometry) * item_bytes / _BYTES
    prompt = _VERIFIED_PROMPT / _tokens_per_second(geometry, rates)
    answers = _VERIFIED_RUNS * (prompt + _VERIFIED_DECODED * _decoding_step(geometry, 4, rates))
    return _PROCESS + 2 * copying + answers + gguf_files * (2 * copying + 2.0)


def _compress(flops: StageFlops, geometry: ModelGeometry, rates: MachineRates) -> float:
    products = (flops.passes + flops.statistics) / rates.products
    layers = geometry.num_hidden_layers * _LAYER
    return products + flops.factorisations / rates.factorisations + layers


def _recover(geometry: ModelGeometry, recover: RecoveryConfig, rates: MachineRates) -> float:
    passes = _TRAINING_PASSES.get(recover.loss, 4.0)
    seconds = passes * recover.max_tokens / _tokens_per_second(geometry, rates)
    return seconds if recover.max_seconds is None else min(seconds, recover.max_seconds)


def _tokens_per_second(geometry: ModelGeometry, rates: MachineRates) -> float:
    """Return the tokens of a prompt that pass the dense model in a second."""
    return rates.products / (2.0 * _passed_weights(geometry))


def _passed_weights(geometry: ModelGeometry) -> int:
    """Return the number of weights that every token passes, the head's included."""
    head = geometry.hidden_size * geometry.vocab_size
    return geometry.dense_plan().parameters(geometry) + head
