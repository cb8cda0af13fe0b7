"""The model of several devices: what it divides, what it cannot, and the bytes that ranks send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks.large_models import LLAMAS
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.cost_model import H100_SXM, StageCost, parallel_costs, stage_flops
from intraslice_core.pipeline import _compress_checkpoint
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.ranks import Ranks
from intraslice_core.run import OpenedModel, Run
from tests.intraslice_core.tiny_models import tiny_llama

LLAMA_70B = LLAMAS["Llama-3-70B"]
CONFIG = CompressionConfig(ratio=0.3)


def costs(devices: int) -> dict[str, StageCost]:
    return {
        cost.stage: cost for cost in parallel_costs(LLAMA_70B, CONFIG, H100_SXM, devices=devices)
    }


def seconds(devices: int) -> float:
    return sum(cost.seconds for cost in costs(devices).values())


def test_one_device_has_the_products_of_the_whole_compression_and_sends_nothing() -> None:
    alone, flops = costs(1), stage_flops(LLAMA_70B, CONFIG)
    products = {name: cost.products * H100_SXM.products for name, cost in alone.items()}
    assert products["gradients"] == pytest.approx(flops.gradients)
    assert products["compression"] == pytest.approx(flops.passes + flops.statistics)
    assert products["sensitivity"] == pytest.approx(flops.sensitivity, rel=0.02)
    assert products["trial compression"] == pytest.approx(flops.trial_compression)
    assert all(cost.link_bytes == 0.0 for cost in alone.values())


def test_more_devices_are_faster_but_never_in_proportion() -> None:
    times = [seconds(devices) for devices in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[-1] < 8


def test_products_of_divisible_stages_are_divided_by_the_devices() -> None:
    alone, together = costs(1), costs(8)
    for stage in ("gradients", "compression"):
        assert together[stage].products == pytest.approx(alone[stage].products / 8)


def test_methods_without_sensitivity_are_rejected() -> None:
    with pytest.raises(ValueError, match="flap"):
        parallel_costs(LLAMA_70B, CompressionConfig(method="flap"), H100_SXM)


class CountingRanks(Ranks):
    """A single rank that adds up like several, with a count of the bytes."""

    def __init__(self) -> None:
        self.summed = 0

    @property
    def is_alone(self) -> bool:
        return False

    def sum_(self, tensors: Sequence[Tensor], *, to: int | None = None) -> None:
        # By a ring of two, half of the bytes to one rank and all of them to both.
        self.summed += sum(tensor.nbytes for tensor in tensors) // (1 if to is None else 2)


def test_modelled_sums_are_those_that_ranks_add_up(tmp_path: Path) -> None:
    dense = tiny_llama(
        tmp_path / "dense", hidden_size=64, intermediate_size=256, num_hidden_layers=4
    )
    config = CompressionConfig(
        ratio=0.3,
        round_to=2,
        dtype="float32",
        allocation="uniform",
        calibration=CalibrationConfig(
            source="pydoc", samples=16, sequence_length=48, self_share=0.0
        ),
    )
    ranks = CountingRanks()
    run = Run(on_progress=ignore_progress, should_cancel=never_cancelled, ranks=ranks)
    model = OpenedModel(reference=str(dense), directory=dense)
    report = _compress_checkpoint(model, tmp_path / "out", config, run)
    modelled = parallel_costs(report.geometry, config, H100_SXM, devices=2, item_bytes=4)
    sent = sum(cost.link_bytes for cost in modelled)
    assert ranks.summed < sent < 2 * ranks.summed
