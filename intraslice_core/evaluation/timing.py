"""Speed comparison of two checkpoints in this process."""

from __future__ import annotations

from pathlib import Path

from intraslice_core.config import EvaluationConfig
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.loads import compare_under_loads
from intraslice_core.evaluation.speed import compare_speed
from intraslice_core.families.positions import BENCHMARK_PROMPT, DECODED
from intraslice_core.progress import CancellationCheck, never_cancelled
from intraslice_core.reports.schema import LoadReport, SpeedReport

_BENCHMARK = {
    "batch_size": 1,
    "prompt_tokens": BENCHMARK_PROMPT,
    "new_tokens": DECODED,
    "repeats": 3,
}
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
    dense, compressed = (
        load_model(directory, dtype=dtype, device=device)
        for directory in (dense_dir, compressed_dir)
    )
    speed = None
    if config.benchmark:
        speed = compare_speed(dense, compressed, **_BENCHMARK, should_cancel=should_cancel)
    return speed, compare_under_loads(
        dense, compressed, config.speed_grid, **_LOADS, should_cancel=should_cancel
    )
