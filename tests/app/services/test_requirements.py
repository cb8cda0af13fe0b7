"""Memory on a GPU that is stored with a job: the cost model's device bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.sweep import SweepRequest
from app.domain.worker import RequiredMemory
from app.services import jobs, sweeps
from app.services.admission import AdmittedJob
from app.services.requirements import (
    CONTEXT_BYTES,
    required_gpu_bytes,
    required_host_bytes,
    required_memory,
)
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig, CompressionSettings, EvaluationConfig
from intraslice_core.cost_model import DenseModel, estimate, read_dense, stage_bytes
from intraslice_core.cost_model.memory import cache_bytes_per_token
from intraslice_core.plan import dense_parameters
from tests.app.builders import make_request
from tests.app.checkpoints import headers_only

LOCAL = {"source": "pydoc", "samples": 16, "sequence_length": 512, "self_share": 0.0}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Create a Llama of 2048 dimensions of which only the headers are real."""
    return headers_only(tmp_path / "models" / "wide", hidden_size=2048, intermediate_size=8192)


@pytest.fixture
def dense(place: Path) -> DenseModel:
    return read_dense(place)


def admitted(dense: DenseModel | None, **settings: Any) -> AdmittedJob:
    compression = CompressionConfig.model_validate({"calibration": LOCAL} | settings)
    return AdmittedJob(model="m", compression=compression, evaluation=None, dense=dense)


def needed(dense: DenseModel, **settings: Any) -> int:
    size = required_gpu_bytes(admitted(dense, **settings))
    assert size is not None
    return size


def host_needed(dense: DenseModel, **settings: Any) -> int:
    size = required_memory(admitted(dense, **settings)).host_bytes
    assert size is not None
    return size


def test_the_memory_of_a_model_that_only_a_worker_can_read_is_not_known() -> None:
    assert required_memory(admitted(None)) == RequiredMemory()


def test_on_a_cpu_the_memory_is_the_least_of_the_estimate(dense: DenseModel) -> None:
    assert dense.geometry is not None
    job = admitted(dense)
    expected = estimate(dense.geometry, dense.item_bytes, job.compression, None)
    assert host_needed(dense) == expected.least_memory_bytes
    small = admitted(dense, method="magnitude")
    timed = required_memory(replace(small, evaluation=EvaluationConfig(benchmark=True))).host_bytes
    assert timed is not None
    assert timed > host_needed(dense, method="magnitude"), "both models are timed"
    states = host_needed(dense, method="flap", calibration=LOCAL | {"samples": 64})
    assert states > host_needed(dense, method="flap"), "hidden states are on the host"
    assert host_needed(dense, method="auto") >= host_needed(dense)


def test_the_memory_is_that_of_the_largest_stage(dense: DenseModel) -> None:
    assert dense.geometry is not None
    compression = CompressionConfig.model_validate({"calibration": LOCAL})
    in_place, copied = (
        max(stage.device for stage in stages.values())
        for stages in (
            stage_bytes(dense.geometry, compression, 2, 2, in_place=in_place)
            for in_place in (True, False)
        )
    )
    assert needed(dense) == CONTEXT_BYTES + in_place < CONTEXT_BYTES + copied


def test_the_host_has_the_hidden_states_that_do_not_fit_the_gpu_and_their_copies(
    dense: DenseModel,
) -> None:
    sizes = [
        required_host_bytes(admitted(dense, calibration=LOCAL | {"samples": samples}))
        for samples in (1024, 2048)
    ]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[1] - sizes[0] == 2 * 2 * 1024 * 512 * 2048 * 2
    assert required_host_bytes(admitted(None)) is None


def test_hidden_states_on_the_host_are_not_counted(dense: DenseModel) -> None:
    assert needed(dense, calibration=LOCAL | {"samples": 64}, method="flap") == needed(
        dense, method="flap"
    )


def test_a_wider_dtype_needs_more(dense: DenseModel) -> None:
    assert needed(dense, dtype="float32") > needed(dense, dtype="bfloat16") == needed(dense)


def test_a_model_that_writes_its_calibration_text_is_on_the_gpu_with_a_single_sequence(
    dense: DenseModel,
) -> None:
    assert dense.geometry is not None
    small = {"samples": 4, "sequence_length": 16, "self_share": 0.0}
    alone = needed(dense, method="magnitude", calibration=small | {"source": "pydoc"})
    written = [
        needed(dense, method="magnitude", calibration=small | {"source": "self", "samples": number})
        for number in (1, 4, 64)
    ]
    token = cache_bytes_per_token(dense.geometry, 2)
    least = 2 * dense_parameters(dense.geometry) + 16 * token
    assert written == [CONTEXT_BYTES + least] * 3
    assert least + CONTEXT_BYTES > alone


def test_fine_tuning_needs_both_models(dense: DenseModel) -> None:
    assert dense.geometry is not None
    recovered = needed(dense, recover={"loss": "distill"})
    assert recovered > CONTEXT_BYTES + 2 * 1.5 * dense_parameters(dense.geometry)


def test_fine_tuning_does_not_need_the_memory_of_a_large_batch_of_written_text(
    dense: DenseModel,
) -> None:
    calibration = {"source": "self", "samples": 64, "sequence_length": 2048}
    recover = {"loss": "distill", "batch_size": 1, "sequence_length": 64}
    read = needed(dense, recover=recover, method="magnitude", calibration=LOCAL)
    assert needed(dense, recover=recover, method="magnitude", calibration=calibration) == read


def test_auto_needs_the_memory_of_its_largest_candidate(dense: DenseModel) -> None:
    assert needed(dense, method="auto") >= needed(dense, method="intraslice_plus")


@pytest.mark.postgres
@pytest.mark.broker
def test_the_memory_is_stored_with_every_job(
    resources: Resources, place: Path, dense: DenseModel
) -> None:
    model = ModelSource(source="path", ref=str(place))
    config = CompressionConfig.model_validate({"calibration": LOCAL, "ratio": 0.25})
    job = jobs.create_job(resources, OPERATOR, make_request(model=model, compression=config)).job
    assert job.gpu_bytes == needed(dense, ratio=0.25)
    assert job.host_bytes == host_needed(dense, ratio=0.25)
    settings = CompressionSettings.model_validate({"calibration": LOCAL})
    request = SweepRequest(model=model, compression=settings, ratios=(0.25, 0.5))
    sweep = sweeps.create_sweep(resources, OPERATOR, request).sweep
    stored = [jobs.get_job(resources, OPERATOR, each.id).memory for each in sweep.jobs]
    assert stored == [
        RequiredMemory(
            gpu_bytes=needed(dense, ratio=ratio), host_bytes=host_needed(dense, ratio=ratio)
        )
        for ratio in (0.25, 0.5)
    ]
