"""Durations of compressions, predicted from earlier ones: width of the ranges, and their errors.

    OMP_NUM_THREADS=1 python benchmarks/estimates.py MODEL [MODEL ...] [--runs N] [--seed S]

Compresses models with settings drawn at random (method, calibration, evaluation), one after the
other, and predicts each from those that have finished, as the service does. Times are CPU seconds
of this process and its children, which are wall-clock seconds of a quiet machine with one thread.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from progress import RecordedRun, Recorder

from intraslice_core.config import CalibrationConfig, CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import PastRun, Prediction, predict_duration, stage_seconds

METHODS = ("intraslice_plus", "intraslice", "flap", "wanda_sp")
SAMPLES, LENGTHS = (4, 8, 16, 32), (128, 256)
EVALUATIONS = (None, EvaluationConfig(perplexity=("pycode",), max_tokens=4096, benchmark=False))

Settings = tuple[str, CompressionConfig, EvaluationConfig | None]


def draw(models: list[str], runs: int, seed: int) -> Iterator[Settings]:
    """Yield the settings of each run."""
    generator = random.Random(seed)
    for _ in range(runs):
        calibration = CalibrationConfig(
            source="pydoc",
            samples=generator.choice(SAMPLES),
            sequence_length=generator.choice(LENGTHS),
        )
        config = CompressionConfig(
            method=generator.choice(METHODS), ratio=0.3, calibration=calibration
        )
        yield generator.choice(models), config, generator.choice(EVALUATIONS)


def measure(settings: Settings) -> PastRun:
    """Compress once; return the work and the CPU seconds of each stage."""
    from intraslice_core.pipeline import compress_model

    model, config, evaluation = settings
    recorder = Recorder()
    recorder.start()
    with tempfile.TemporaryDirectory(prefix="intraslice-estimates-") as directory:
        out = Path(directory) / "out"
        report = compress_model(model, out, config, evaluation=evaluation, on_progress=recorder)
    item_bytes = max(round(report.bytes_before / report.params_before), 1)
    modelled = stage_seconds(report.geometry, config, evaluation, item_bytes)
    seconds = RecordedRun(modelled=modelled, moments=recorder.moments).stage_seconds()
    stages = [stage for stage in modelled if seconds.get(stage, 0.0) > 0.0]
    return PastRun(
        method=str(config.method),
        work={stage: modelled[stage] for stage in stages},
        seconds={stage: seconds[stage] for stage in stages},
    )


def show(settings: Settings, predicted: Prediction, seconds: float) -> None:
    """Print a run as a line."""
    model, config, evaluation = settings
    tokens = config.calibration.samples * config.calibration.sequence_length
    inside = "" if predicted.low <= seconds <= predicted.high else "outside"
    bounds = f"{predicted.low:>9.1f}{predicted.expected:>9.1f}{predicted.high:>9.1f}"
    measured = "evaluated" if evaluation is not None else ""
    name = Path(model).name[:20]
    print(
        f"{name:<21}{config.method:<16}{tokens:>6}{measured:>10}{bounds}{seconds:>10.1f} {inside}",
        flush=True,
    )


def main() -> None:
    """Compress repeatedly and print a line each, and a last line of JSON."""
    parser = argparse.ArgumentParser(description="Predicted and measured durations")
    parser.add_argument("models", nargs="+", help="references, as for `intraslice compress`")
    parser.add_argument("--runs", type=int, default=20, help="compressions (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    options = parser.parse_args()
    print(
        f"{'model':<21}{'method':<16}{'tokens':>6}{'':>10}{'low':>9}{'seconds':>9}{'high':>9}"
        f"{'measured':>10}"
    )
    past: list[PastRun] = []
    inside, widths, ratios = [], [], []
    for settings in draw(options.models, options.runs, options.seed):
        run = measure(settings)
        seconds = sum(run.seconds.values())
        predicted = predict_duration(past, run.method, run.work)
        show(settings, predicted, seconds)
        if past:
            inside.append(predicted.low <= seconds <= predicted.high)
            widths.append(predicted.high / predicted.low)
            ratios.append(seconds / predicted.expected)
        expected = predicted.expected if past else None
        past.insert(
            0, PastRun(method=run.method, work=run.work, seconds=run.seconds, predicted=expected)
        )
    half = len(inside) // 2
    result = {
        "runs": len(past),
        "in_range": round(statistics.fmean(inside), 3),
        "in_range_later_half": round(statistics.fmean(inside[half:]), 3),
        "median_width": round(statistics.median(widths), 2),
        "median_width_later_half": round(statistics.median(widths[half:]), 2),
        "median_ratio": round(statistics.median(ratios), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
