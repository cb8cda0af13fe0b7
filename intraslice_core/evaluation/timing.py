"""Speed comparison of two checkpoints in this process."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from intraslice_core.config import EvaluationConfig
from intraslice_core.context_length import context_of
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.loads import compare_under_loads
from intraslice_core.evaluation.speed import compare_speed
from intraslice_core.families.positions import DECODED
from intraslice_core.progress import CancellationCheck, never_cancelled
from intraslice_core.reports.schema import LoadReport, SpeedReport
from intraslice_core.substeps import report_substep

_BENCHMARK = {"batch_size": 1, "new_tokens": DECODED, "repeats": 3}
_BENCHMARK_PROMPT = 256
"""Tokens of the benchmark's prompt, fewer in a shorter context."""
_LOADS = {"new_tokens": DECODED, "repeats": 5}


def compare_speeds(
    dense_dir: Path,
    compressed_dir: Path,
    config: EvaluationConfig,
    *,
    dtype: str,
    device: str,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[SpeedReport | None, tuple[LoadReport, ...]]:
    """Run the requested speed measurements.

    Both models are in memory at once, because they alternate while they are timed.

    Raises:
        CompressionCancelledError: if the run is cancelled.
    """
    models: list[PreTrainedModel] = []
    for directory in (dense_dir, compressed_dir):
        report_substep(f"loading model {len(models) + 1}/2")
        models.append(load_model(directory, dtype=dtype, device=device))
    dense, compressed = models
    speed = None
    if config.benchmark:
        prompt = _benchmark_prompt(context_of(dense.config.to_dict()))
        speed = compare_speed(
            dense, compressed, prompt_tokens=prompt, **_BENCHMARK, should_cancel=should_cancel
        )
    return speed, compare_under_loads(
        dense, compressed, config.speed_grid, **_LOADS, should_cancel=should_cancel
    )


def _benchmark_prompt(context: int | None) -> int:
    """Return the benchmark's prompt length, which fits the context with the decoded tokens."""
    if context is None:
        return _BENCHMARK_PROMPT
    return max(min(_BENCHMARK_PROMPT, context - _BENCHMARK["new_tokens"]), 1)
