"""The model of the work agrees with the engine's own numbers, and with what torch counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from intraslice_core.allocation import search
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
)
from intraslice_core.cost_model import read_dense, stage_bytes, stage_flops, stage_work, work
from intraslice_core.cost_model.work import EstimatorSequences, spots, stream_layers
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.sensitivity import gradients, measurement
from tests.intraslice_core.tiny_models import tiny_llama

LLAMA_8B = ModelGeometry(
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def config(samples: int = 32, length: int = 64, **changes: object) -> CompressionConfig:
    calibration = CalibrationConfig(source="pydoc", samples=samples, sequence_length=length)
    return CompressionConfig(calibration=calibration, round_to=2, **changes)


def test_sizes_are_the_estimators_own() -> None:
    assert work.GROUP_SEQUENCES == gradients.GROUP_SEQUENCES
    assert work.TRIAL_CALIBRATION == search.TRIAL_SEQUENCES
    assert len(search.CANDIDATES) + 1 == work.TRIAL_PLANS
    assert work.SPOT_DISTANCE == measurement.SPOT_DISTANCE
    assert 2 * len(measurement.TRIAL_CUTS) == work.TRIALS_A_SPOT
    assert (work.PAIR_SEQUENCES, work.PAIR_QUERIES) == (
        measurement.PAIR_SEQUENCES,
        measurement.PAIR_QUERIES,
    )


@pytest.mark.parametrize("samples", [1, 2, 9, 16, 40, 128, 1000])
def test_sequences_are_the_split_of_the_tokens(samples: int) -> None:
    split = CalibrationSplit.of(torch.zeros(samples, 16, dtype=torch.long))
    parts = EstimatorSequences.of(config(samples, 16))
    assert (parts.gradients, parts.learning, parts.check) == (
        len(split.gradients),
        len(split.sensitivity),
        len(split.check),
    )
    assert parts.trial_compression == len(split.sensitivity[: search.TRIAL_SEQUENCES])


def test_parts_that_a_method_leaves_out_are_nothing() -> None:
    assert EstimatorSequences.of(config(method="magnitude")) == EstimatorSequences(
        gradients=0, learning=0, check=0, trial_compression=0
    )
    paper = EstimatorSequences.of(config(method="intraslice"))
    assert (paper.gradients, paper.learning, paper.trial_compression) == (8, 0, 0)
    equal = EstimatorSequences.of(config(allocation="uniform"))
    assert (equal.learning, equal.trial_compression) == (30, 0)


def test_trials_pass_what_is_behind_them() -> None:
    assert spots(7) == (0, 5, 6)
    assert stream_layers(7) == 7 + 4 * (7 + 2 + 1)


def test_flops_agree_with_torchs_count(tmp_path: Path) -> None:
    """Within 30 %: torch counts products in float64 as well, but no factorisation."""
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    asked = config(ratio=0.3, dtype="float32", device="cpu")
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, asked)
    counted: Counter[str] = Counter()
    seen, place = 0, ""

    def listen(event: ProgressEvent) -> None:
        nonlocal seen, place
        total = counter.get_total_flops()
        counted[place] += total - seen
        seen, place = total, event.message if event.stage is Stage.ALLOCATE else event.stage.value

    counter = FlopCounterMode(display=False)
    with counter:
        compress_model(str(dense), tmp_path / "out", asked, verify=False, on_progress=listen)
    told = {
        "measuring the sensitivity of layers": (
            expected.gradients + expected.learning,
            expected.learning_wide,
        ),
        "comparing allocations": (expected.trial_compression, expected.rehearsal_wide),
        "compress": (expected.passes + expected.statistics, expected.factorisations),
    }
    for stage, (products, wide) in told.items():
        assert 0.7 * products < counted[stage] < 1.3 * (products + wide), stage


def test_work_grows_as_shapes_do() -> None:
    small = stage_flops(LLAMA_8B, config(128, 2048))
    twice = stage_flops(LLAMA_8B, config(256, 2048))
    assert twice.passes == pytest.approx(2 * small.passes)
    assert twice.factorisations == small.factorisations
    # Forward over n tokens is 2·n·parameters and a little for the attention's scores.
    assert small.forward == pytest.approx(2 * 128 * 2048 * 7.5e9, rel=0.05)


def test_bytes_of_stages_are_those_of_the_shapes() -> None:
    stages = stage_bytes(LLAMA_8B, config(128, 2048), 2, 2)
    assert set(stages) == {"gradients", "learning", "rehearsal", "compress"}
    assert stages["compress"].host == 2 * 128 * 2048 * 4096 * 2
    assert stages["gradients"].host == 8 * 2048 * 4096 * 2 * 34
    assert stages["learning"].host == (32 + 8 * 33) * 2048 * 4096 * 2
    # One layer, not the model: its Gram matrices outweigh it, all of it stays below 24 GiB.
    assert 8 * 14336**2 < stages["compress"].device < 24 * 2**30
    assert stage_bytes(LLAMA_8B, config(method="magnitude"), 2, 2)["compress"].host == 0


def test_the_estimator_is_predicted_with_the_rest() -> None:
    work = stage_work(10**6, 4, config(), None)
    assert work[Stage.ALLOCATE] > work[Stage.COMPRESS]
    assert (
        stage_work(10**6, 4, config(allocation="uniform", method="intraslice"), None)[
            Stage.ALLOCATE
        ]
        == 0
    )


def test_a_training_is_predicted_by_its_tokens() -> None:
    def work(**recover: Any) -> float:
        asked = config().model_copy(update={"recover": RecoveryConfig.model_validate(recover)})
        return stage_work(10**6, 4, asked, None)[Stage.RECOVER]

    assert Stage.RECOVER not in stage_work(10**6, 4, config(), None)
    assert work(max_tokens=2**20) == 2 * work(max_tokens=2**19)
    assert work(loss="ce") < work(loss="distill")


def test_tasks_are_predicted_by_their_limit() -> None:
    def work(**asked: Any) -> float:
        return stage_work(10**6, 4, config(), EvaluationConfig(**asked))[Stage.EVALUATE]

    none, one = work(), work(tasks=("arc_easy",), task_limit=50)
    assert work(tasks=("arc_easy", "boolq"), task_limit=50) - one == pytest.approx(one - none)
    assert work(tasks=("arc_easy",)) == none
