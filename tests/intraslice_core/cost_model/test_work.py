"""The cost model agrees with the engine's own constants and with torch's count of operations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from intraslice_core import compensation, hidden_states
from intraslice_core.allocation import search
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
)
from intraslice_core.cost_model import (
    flops,
    memory,
    read_dense,
    stage_bytes,
    stage_flops,
    stage_work,
    work,
)
from intraslice_core.cost_model.work import EstimatorSequences, check_layer_passes, trial_layers
from intraslice_core.evaluation import perplexity, scoring
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


def test_constants_equal_the_engines() -> None:
    assert work.GROUP_SEQUENCES == gradients.GROUP_SEQUENCES
    assert work.TRIAL_CALIBRATION == search.TRIAL_SEQUENCES
    assert len(search.CANDIDATES) + 1 == work.TRIAL_PLANS
    assert work.TRIAL_LAYER_DISTANCE == measurement.SPOT_DISTANCE
    assert 2 * len(measurement.TRIAL_CUTS) == work.TRIALS_PER_LAYER
    assert (work.PAIR_SEQUENCES, work.PAIR_QUERIES) == (
        measurement.PAIR_SEQUENCES,
        measurement.PAIR_QUERIES,
    )
    assert flops.DAMPING_PROBES == compensation.PROBES
    assert memory.KEPT_INNER_BYTES == hidden_states.KEPT_INNER_BYTES
    assert memory.EVALUATION_LOGITS == perplexity.EVALUATION_LOGITS
    assert memory.EVALUATION_TOKENS == scoring.EVALUATION_TOKENS


@pytest.mark.parametrize("samples", [1, 2, 9, 16, 40, 128, 1000])
def test_sequences_equal_the_engines_split(samples: int) -> None:
    split = CalibrationSplit.of(torch.zeros(samples, 16, dtype=torch.long))
    parts = EstimatorSequences.of(config(samples, 16))
    assert (parts.gradients, parts.sensitivity, parts.check) == (
        len(split.gradients),
        len(split.sensitivity),
        len(split.check),
    )
    assert parts.trial_compression == len(split.sensitivity[: search.TRIAL_SEQUENCES])


def test_parts_that_a_method_skips_have_no_sequences() -> None:
    assert EstimatorSequences.of(config(method="magnitude")) == EstimatorSequences(
        gradients=0, sensitivity=0, check=0, trial_compression=0
    )
    intraslice = EstimatorSequences.of(config(method="intraslice"))
    assert (intraslice.gradients, intraslice.sensitivity, intraslice.trial_compression) == (8, 0, 0)
    uniform = EstimatorSequences.of(config(allocation="uniform"))
    assert (uniform.sensitivity, uniform.trial_compression) == (28, 0)


def test_trials_pass_the_layers_after_them() -> None:
    assert trial_layers(7) == (0, 5, 6)
    assert check_layer_passes(7) == 7 + 4 * (7 + 2 + 1)


def test_flops_agree_with_torchs_count(tmp_path: Path) -> None:
    """Agree within 30 %: torch counts products in float64 as well, but no factorisation."""
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.3, dtype="float32", device="cpu")
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted: Counter[str] = Counter()
    previous_total, stage = 0, ""

    def count_by_stage(event: ProgressEvent) -> None:
        nonlocal previous_total, stage
        total = counter.get_total_flops()
        counted[stage] += total - previous_total
        stage = event.message if event.stage is Stage.ALLOCATE else event.stage.value
        previous_total = total

    counter = FlopCounterMode(display=False)
    with counter:
        compress_model(
            str(dense), tmp_path / "out", settings, verify=False, on_progress=count_by_stage
        )
    estimated = {
        "measuring the sensitivity of layers": (
            expected.gradients + expected.sensitivity,
            expected.sensitivity_factorisations,
        ),
        "comparing allocations": (expected.trial_compression, expected.trial_factorisations),
        "compress": (expected.passes + expected.statistics, expected.factorisations),
    }
    for name, (products, factorisations) in estimated.items():
        assert 0.7 * products < counted[name] < 1.3 * (products + factorisations), name


def test_work_grows_with_the_shapes() -> None:
    small = stage_flops(LLAMA_8B, config(128, 2048))
    twice = stage_flops(LLAMA_8B, config(256, 2048))
    assert twice.passes == pytest.approx(2 * small.passes)
    assert twice.factorisations == small.factorisations
    # A forward pass over n tokens takes 2·n·parameters and a little for the attention's scores.
    assert small.forward == pytest.approx(2 * 128 * 2048 * 7.5e9, rel=0.05)


def test_bytes_of_stages_follow_from_the_shapes() -> None:
    stages = stage_bytes(LLAMA_8B, config(128, 2048), 2, 2)
    assert set(stages) == {"gradients", "sensitivity", "trial_compression", "compress"}
    assert stages["compress"].host == 2 * 128 * 2048 * 4096 * 2
    assert stages["gradients"].host == 8 * 2048 * 4096 * 2 * 34
    assert stages["sensitivity"].host == (32 + 8 * 33) * 2048 * 4096 * 2
    # One layer, not the model: its Gram matrices are larger than it, the sum is below 24 GiB.
    assert 8 * 14336**2 < stages["compress"].device < 24 * 2**30
    assert stage_bytes(LLAMA_8B, config(method="magnitude"), 2, 2)["compress"].host == 0


def test_work_contains_the_sensitivity_measurement() -> None:
    work = stage_work(10**6, 4, config(), None)
    assert work[Stage.ALLOCATE] > work[Stage.COMPRESS]
    assert (
        stage_work(10**6, 4, config(allocation="uniform", method="intraslice"), None)[
            Stage.ALLOCATE
        ]
        == 0
    )


def test_work_of_fine_tuning_is_proportional_to_its_tokens() -> None:
    def work(**recover: Any) -> float:
        settings = config().model_copy(update={"recover": RecoveryConfig.model_validate(recover)})
        return stage_work(10**6, 4, settings, None)[Stage.RECOVER]

    assert Stage.RECOVER not in stage_work(10**6, 4, config(), None)
    assert work(max_tokens=2**20) == 2 * work(max_tokens=2**19)
    assert work(loss="ce") < work(loss="distill")


def test_work_of_tasks_is_proportional_to_their_limit() -> None:
    def work(**settings: Any) -> float:
        return stage_work(10**6, 4, config(), EvaluationConfig(**settings))[Stage.EVALUATE]

    no_task, one_task = work(), work(tasks=("arc_easy",), task_limit=50)
    two_tasks = work(tasks=("arc_easy", "boolq"), task_limit=50)
    assert two_tasks - one_task == pytest.approx(one_task - no_task)
    assert work(tasks=("arc_easy",)) == no_task
