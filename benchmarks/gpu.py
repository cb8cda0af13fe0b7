"""The engine on a GPU: parity with the CPU, seconds of a compression, and speed of its result.

    python benchmarks/gpu.py [--ratio 0.3] [--device auto|cuda|cuda:N] [--work-dir DIR]
    python benchmarks/gpu.py --device cpu --width tiny

Takes less than 8 minutes on one GPU and needs no network. Three parts:

- Parity. A tiny random model of every family and one with the widths of SmolLM2-135M are compressed
  on the CPU and on the device, in float32 with the same settings. Rounding differs, so that choices
  between equal candidates may: the two results must agree as functions. Their disagreement is the
  divergence of one from the other, over the divergence of the CPU's result from the dense model; it
  must be at most 0.1.
- Compression of a random model as wide as Llama-3-8B with 8 layers, in bfloat16: seconds by stage,
  peak memory, and where the hidden states lie. The model takes 6 GB in a temporary directory.
- Speed: tokens/s of this model and of its compression, prefill and decode of 1 and of 32 sequences.

Values of random weights decide nothing about speed, and the quality of the result is not measured.
On a machine without a GPU the command ends with exit code 2; with `--device cpu --width tiny` it
runs all parts on small models, to test the command itself. Exit code 1: a parity check failed.

The last line is JSON: {"device": …, "torch": …, "width": …, "parity": {model: {"same_plan": …,
"disagreement": …}}, "compression_seconds": …, "stages": …, "peak_memory_bytes": …, "hidden_states":
…, "speed": [{"batch_size": …, "prefill": {"dense": …, "compressed": …, "ratio": …}, "decode": …}],
"seconds": …}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from process_memory import Watch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from intraslice_core.config import CalibrationConfig, CompressionConfig, SpeedPoint
from intraslice_core.device import device_class, release_memory, resolve_device
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.loads import compare_under_loads
from intraslice_core.families import FAMILIES
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.schema import CompressionReport, LoadReport, PhaseComparison

LARGEST_DISAGREEMENT = 0.1
REAL_WIDTH = "SmolLM2-135M's widths"
NO_GPU = (
    "no GPU: torch sees no CUDA device on this machine. Run this where there is one, or test the "
    "command itself with --device cpu --width tiny"
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of all parts."""

    families: tuple[str, ...]
    """Model types whose parity is checked."""
    real_width: Mapping[str, int] | None
    """Sizes of the larger model whose parity is checked; None without one."""
    wide: Mapping[str, Any]
    """Sizes of the model that is timed."""
    samples: int
    sequence_length: int
    prompt_tokens: int
    new_tokens: int
    repeats: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "llama-3-8b": Preset(
            families=tuple(FAMILIES),
            real_width={
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "num_hidden_layers": 2,
            },
            wide={
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 8,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 8192,
            },
            samples=32,
            sequence_length=1024,
            prompt_tokens=512,
            new_tokens=64,
            repeats=5,
        ),
        "tiny": Preset(
            families=("llama", "gemma2"),
            real_width=None,
            wide={
                "vocab_size": 259,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
            },
            samples=8,
            sequence_length=32,
            prompt_tokens=16,
            new_tokens=4,
            repeats=2,
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of two compressions of one model, on the CPU and on the device."""

    same_plan: bool
    disagreement: float
    """KL(CPU's result ‖ device's) over KL(dense ‖ CPU's result)."""


def main() -> int:
    """Run all parts; return the exit code."""
    options = parse()
    problem = _problem(options)
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 2
    torch.manual_seed(0)
    logging.disable_progress_bar()
    started, console = time.perf_counter(), Console(width=110)
    preset, device = PRESETS[options.width], resolve_device(options.device)
    facts: dict[str, Any] = {
        "device": device_class(device),
        "torch": torch.__version__,
        "width": options.width,
    }
    with tempfile.TemporaryDirectory(prefix="intraslice-gpu-", dir=options.work_dir) as folder:
        parity = check_parity(preset, options, Path(folder), console)
        facts["parity"] = {model: vars(result) for model, result in parity.items()}
        dense, out = Path(folder) / "wide", Path(folder) / "compressed"
        write_wide(preset, dense, device)
        report, watch, placement = compress_wide(preset, options, dense, out)
        loads = measure_speed(preset, options, dense, out)
    facts |= described_compression(report, watch, placement)
    facts["speed"] = [described_load(load) for load in loads]
    facts["seconds"] = round(time.perf_counter() - started, 1)
    print_tables(facts, console)
    print(json.dumps(facts))
    agree = all(result.disagreement <= LARGEST_DISAGREEMENT for result in parity.values())
    return 0 if agree else 1


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, or cpu (tiny only).")
    parser.add_argument("--width", choices=tuple(PRESETS), default="llama-3-8b")
    parser.add_argument("--work-dir", type=Path, help="Directory for temporary models (6 GB).")
    return parser.parse_args()


def _problem(options: argparse.Namespace) -> str | None:
    """Return why nothing can be measured; None if it can."""
    if options.device == "cpu":
        return None if options.width == "tiny" else "the CPU is too slow: use --width tiny with it"
    return None if torch.cuda.is_available() else NO_GPU


# -- parity --------------------------------------------------------------------------------------


def check_parity(
    preset: Preset, options: argparse.Namespace, place: Path, console: Console
) -> dict[str, Parity]:
    """Compress every model of the preset twice; return the agreement by model."""
    tiny = tiny_models()
    every = tiny.FAMILY_VARIANTS | tiny.FORWARD_VARIANTS
    results = {}
    for family in preset.families:
        variant = next(name for name in every if every[name]["model_type"] == family)
        dense = tiny.tiny_checkpoint(place / family, variant)
        results[family] = compare_devices(dense, options, place, samples=8, length=32)
    if preset.real_width is not None:
        dense = tiny.tiny_llama(place / "real", **preset.real_width)
        results[REAL_WIDTH] = compare_devices(dense, options, place, samples=16, length=256)
    for model, result in results.items():
        plan = "same plan" if result.same_plan else "other plan"
        console.print(f"parity of {model}: {plan}, disagreement {result.disagreement:.2e}")
    return results


def compare_devices(
    dense: Path, options: argparse.Namespace, place: Path, *, samples: int, length: int
) -> Parity:
    """Compress a model on the CPU and on the device, and compare the results as functions.

    Args:
        dense: the dense model.
        options: ratio and device.
        place: directory for the results, which are removed.
        samples: calibration sequences.
        length: tokens of a sequence.
    """
    plans, models = [], [dense]
    for name, device in (("on-cpu", "cpu"), ("on-device", options.device)):
        config = CompressionConfig(
            ratio=options.ratio,
            round_to=2,
            device=device,
            dtype="float32",
            calibration=CalibrationConfig(
                source="pydoc", samples=samples, sequence_length=length, self_share=0.0
            ),
        )
        models.append(place / f"{dense.name}-{name}")
        plans.append(compress_model(str(dense), models[-1], config, verify=False).plan)
    expected, on_cpu, on_device = (log_probabilities(model) for model in models)
    difference = divergence(on_cpu, on_device)
    return Parity(
        same_plan=plans[0] == plans[1],
        disagreement=difference / max(divergence(expected, on_cpu), 1e-12),
    )


@torch.inference_mode()
def log_probabilities(directory: Path) -> torch.Tensor:
    """Return a model's log-probabilities of random text, (positions, vocabulary), on the CPU."""
    model: Any = load_model(directory, dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(3, vocabulary, (8, 16), generator=generator)
    return model(input_ids=tokens).logits.flatten(0, 1).double().log_softmax(-1)


def divergence(expected: torch.Tensor, predicted: torch.Tensor) -> float:
    """Return the mean KL(expected ‖ predicted) in nats of log-probabilities."""
    return float((expected.exp() * (expected - predicted)).sum(-1).mean())


def tiny_models() -> Any:
    """Return the module with the random models of the tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    return importlib.import_module("tests.intraslice_core.tiny_models")


# -- compression and speed -------------------------------------------------------------------------


def write_wide(preset: Preset, directory: Path, device: torch.device) -> None:
    """Write a random Llama in bfloat16, made on the device."""
    config = LlamaConfig(**preset.wide, tie_word_embeddings=False, dtype="bfloat16")
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tiny_models().tiny_tokenizer().save_pretrained(directory)
    del model
    release_memory()


def compress_wide(
    preset: Preset, options: argparse.Namespace, dense: Path, out: Path
) -> tuple[CompressionReport, Watch, str]:
    """Compress the wide model; return the report, the seconds of stages and the log's placement."""
    config = CompressionConfig(
        ratio=options.ratio,
        device=options.device,
        calibration=CalibrationConfig(
            source="pydoc",
            samples=preset.samples,
            sequence_length=preset.sequence_length,
            self_share=0.0,
        ),
    )
    watch, placement = Watch(), ["in host memory"]

    def listen(event: ProgressEvent) -> None:
        watch.listen(event)
        if event.stage is Stage.LOAD and "hidden states" in event.message:
            placement.append(event.message)

    report = compress_model(str(dense), out, config, verify=False, on_progress=listen)
    end = ProgressEvent(stage=Stage.PUBLISH, message="", fraction=1.0)
    watch.listen(end)
    return report, watch, placement[-1]


def measure_speed(
    preset: Preset, options: argparse.Namespace, dense: Path, out: Path
) -> tuple[LoadReport, ...]:
    """Time prefill and decode of the dense and the compressed model, in turns."""
    release_memory()
    models = [
        load_model(directory, dtype="auto", device=options.device) for directory in (dense, out)
    ]
    points = [
        SpeedPoint(batch_size=batch, context_length=preset.prompt_tokens) for batch in (1, 32)
    ]
    return compare_under_loads(
        *models, points, new_tokens=preset.new_tokens, repeats=preset.repeats
    )


# -- results ---------------------------------------------------------------------------------------


def described_compression(
    report: CompressionReport, watch: Watch, placement: str
) -> dict[str, Any]:
    """Return the facts about the compression of the wide model."""
    stages = [stage.value for stage in Stage if watch.total(watch.seconds, stage.value) > 0.0]
    return {
        "compression_seconds": round(report.seconds, 1),
        "stages": {stage: round(watch.total(watch.seconds, stage), 1) for stage in stages},
        "peak_memory_bytes": report.peak_memory_bytes,
        "removed_fraction": round(report.removed_fraction, 4),
        "hidden_states": placement,
    }


def described_load(load: LoadReport) -> dict[str, Any]:
    """Return the tokens/s under one load."""

    def rates(phase: PhaseComparison) -> dict[str, float]:
        return {
            "dense": round(phase.dense, 1),
            "compressed": round(phase.compressed, 1),
            "ratio": round(phase.ratio, 3),
        }

    return {
        "batch_size": load.batch_size,
        "prompt_tokens": load.context_length,
        "new_tokens": load.new_tokens,
        "prefill": rates(load.prefill),
        "decode": rates(load.decode),
    }


def print_tables(facts: dict[str, Any], console: Console) -> None:
    """Print the seconds of the compression and the tokens/s of both models."""
    console.print(f"{facts['device']}, torch {facts['torch']}, {facts['width']}")
    stages = Table("compression", "seconds")
    for stage, seconds in facts["stages"].items():
        stages.add_row(stage, f"{seconds:.1f}")
    stages.add_row("all", f"{facts['compression_seconds']:.1f}")
    console.print(stages)
    console.print(
        f"peak memory {(facts['peak_memory_bytes'] or 0) / 1e9:.2f} GB; {facts['hidden_states']}"
    )
    speed = Table("sequences", "tokens/s", "dense", "compressed", "ratio")
    for load in facts["speed"]:
        for phase in ("prefill", "decode"):
            rates = load[phase]
            speed.add_row(
                str(load["batch_size"]),
                phase,
                f"{rates['dense']:,.0f}",
                f"{rates['compressed']:,.0f}",
                f"{rates['ratio']:.3f}",
            )
    console.print(speed)


if __name__ == "__main__":
    sys.exit(main())
