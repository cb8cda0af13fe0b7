"""Real checkpoints as users have them: GGUF files, compressed through the command line.

    python benchmarks/models.py [MODEL …] [--calibration TEXT] [--evaluation TEXT] [--also TEXT]
        [--ratios 0.2,0.3] [--methods intraslice,intraslice_plus] [--samples 32]
        [--evaluate-tokens 16384] [--out DIR] [--dense-only]

MODEL is a name of `benchmarks/model_files.py`, which downloads, joins and checks the files. TEXT is
a short name of `benchmarks/data.py`, a path, or the name of a calibration source; `--also` may be
repeated. First the dense model: the same windows of text, with BOS where the model expects it, are
scored by our conversion in transformers and by llama.cpp on the file itself. Then every method
compresses the file by `intraslice sweep`, which evaluates every text. With `--out` the results stay
in DIR/MODEL/METHOD, and an interrupted measurement resumes behind its last finished ratio.

The last line is JSON: {MODEL: {"dense": {TEXT: {"ours": …, "llama_cpp": …, "ratio": …}}, "tokens":
…, "perplexity": {TEXT: {"dense": …, RATIO: {METHOD: …}}}, "seconds": {METHOD: {RATIO: …}}}}. With
`--dense-only` the last two are empty.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data import text_source
from llama_cpp_losses import window_losses
from model_files import FILES, ModelFileError, fetch, models_directory
from rich.console import Console
from rich.table import Table
from torch import Tensor

from intraslice_core.calibration import text_prefix
from intraslice_core.calibration.windows import full_windows
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.reports.sweep import SweepReport
from intraslice_core.tokenizer import load_tokenizer

WINDOW = 512
TOLERANCE = 0.01
"""Largest relative difference of the dense perplexity from llama.cpp's."""
Figures = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["gemma3-270m"], metavar="MODEL")
    parser.add_argument("--calibration", type=text_source, default="wikitext2-valid")
    parser.add_argument("--evaluation", type=text_source, default="wikitext2-test")
    parser.add_argument("--also", action="append", type=text_source)
    parser.add_argument("--ratios", default="0.2,0.3")
    parser.add_argument("--methods", default="intraslice,intraslice_plus")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--dense-tokens", type=int, default=8_192, help="Tokens of the check.")
    parser.add_argument("--evaluate-tokens", type=int, default=16_384, help="Tokens per text.")
    parser.add_argument(
        "--out", type=Path, help="Directory of the results; default: a temporary one."
    )
    parser.add_argument("--dense-only", action="store_true")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in FILES]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}: choose from {', '.join(FILES)}")
    arguments.texts = [arguments.evaluation, *(arguments.also or ["pydoc", "pycode"])]
    return arguments


@torch.inference_mode()
def our_losses(directory: Path, windows: Tensor) -> Tensor:
    """Return the losses in nats of every window's tokens after the first, in transformers."""
    model = load_model(directory, dtype="auto", device="auto")
    losses = []
    for window in windows:
        logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits.float().cpu(), window[1:], reduction="none"))
    return torch.stack(losses)


def compare_dense(file: Path, directory: Path, arguments: argparse.Namespace) -> Figures:
    """Return the dense perplexities on equal windows in transformers and in llama.cpp."""
    tokenizer = load_tokenizer(directory)
    figures = {}
    for text in arguments.texts:
        tokens = evaluation_tokens(text, tokenizer, arguments.dense_tokens)
        windows = full_windows(tokens, text_prefix(tokenizer), WINDOW)
        ours, theirs = (
            float(losses.double().mean().exp())
            for losses in (our_losses(directory, windows), window_losses(file, windows))
        )
        figures[text] = {"ours": ours, "llama_cpp": theirs, "ratio": ours / theirs}
    return figures


def sweep(file: Path, method: str, out: Path, arguments: argparse.Namespace) -> SweepReport:
    """Compress the file at all ratios by the command line and return its report."""
    command = [str(Path(sysconfig.get_path("scripts")) / "intraslice"), "sweep", str(file)]
    command += ["--out", str(out), "--ratios", arguments.ratios, "--method", method, "--json"]
    command += ["--calibration", arguments.calibration, "--samples", str(arguments.samples)]
    command += ["--sequence-length", str(arguments.sequence_length), "--no-benchmark"]
    command += ["--evaluate-tokens", str(arguments.evaluate_tokens)]
    command += [option for text in arguments.texts for option in ("--evaluate", text)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return SweepReport.model_validate_json(done.stdout)


def measure(name: str, arguments: argparse.Namespace, console: Console) -> Figures:
    """Check one model against llama.cpp, compress it, and print the tables."""
    file = fetch(FILES[name], models_directory())
    figures: Figures = {"perplexity": {text: {} for text in arguments.texts}, "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(str(file), Path(folder))
        figures["dense"] = compare_dense(file, directory, arguments)
        show_dense(name, figures["dense"], console)
        results = (arguments.out or Path(folder)) / name
        for method in () if arguments.dense_only else arguments.methods.split(","):
            report = sweep(file, method, results / method, arguments)
            for point in report.points:
                figures["seconds"].setdefault(method, {})[f"{point.ratio:g}"] = point.seconds
                for comparison in point.perplexity:
                    scores = figures["perplexity"][comparison.text]
                    scores["dense"] = comparison.dense
                    scores.setdefault(f"{point.ratio:g}", {})[method] = comparison.compressed
            console.print(f"{name}: {method} is done")
    show_compressed(name, figures, arguments, console)
    figures["tokens"] = arguments.samples * arguments.sequence_length
    return figures


def show_dense(name: str, figures: Figures, console: Console) -> None:
    """Print the dense perplexities of both runtimes."""
    table = Table("text", "transformers", "llama.cpp", "ratio", title=f"{name}, dense")
    for text, values in figures.items():
        met = "" if abs(values["ratio"] - 1) <= TOLERANCE else ", missed"
        cells = f"{values['ours']:.3f}", f"{values['llama_cpp']:.3f}", f"{values['ratio']:.4f}{met}"
        table.add_row(Path(text).name, *cells)
    console.print(table)


def show_compressed(
    name: str, figures: Figures, arguments: argparse.Namespace, console: Console
) -> None:
    """Print the perplexities of all methods and ratios."""
    methods = list(figures["seconds"])
    table = Table("text", "ratio", "dense", *methods, title=f"{name}, perplexity")
    for text, scores in figures["perplexity"].items():
        for ratio in arguments.ratios.split(",") if scores else ():
            cells = [f"{scores[ratio][method]:.2f}" for method in methods]
            table.add_row(Path(text).name, ratio, f"{scores['dense']:.2f}", *cells)
    if methods:
        console.print(table)


def main() -> None:
    """Measure all models and print tables and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=120)
    try:
        results = {name: measure(name, arguments, console) for name in arguments.models}
    except ModelFileError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(results))


if __name__ == "__main__":
    main()
