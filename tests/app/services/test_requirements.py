"""Memory on a GPU that is stored with a job: the cost model's device bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR
from app.domain.sweep import SweepRequest
from app.services import jobs, sweeps
from app.services.admission import AdmittedJob
from app.services.requirements import CONTEXT_BYTES, required_gpu_bytes, required_host_bytes
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig, CompressionSettings
from intraslice_core.cost_model import DenseModel, read_dense, stage_bytes
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


def test_the_memory_of_a_model_that_only_a_worker_can_read_is_not_known() -> None:
    assert required_gpu_bytes(admitted(None)) is None


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


def test_a_model_that_writes_its_calibration_text_is_on_the_gpu_as_a_whole(
    dense: DenseModel,
) -> None:
    assert dense.geometry is not None
    small = {"samples": 4, "sequence_length": 16, "self_share": 0.0}
    alone = needed(dense, method="magnitude", calibration=small | {"source": "pydoc"})
    writing = needed(dense, method="magnitude", calibration=small | {"source": "self"})
    assert writing == CONTEXT_BYTES + 2 * dense_parameters(dense.geometry) > alone


def test_fine_tuning_needs_both_models(dense: DenseModel) -> None:
    assert dense.geometry is not None
    recovered = needed(dense, recover={"loss": "distill"})
    assert recovered > CONTEXT_BYTES + 2 * 1.5 * dense_parameters(dense.geometry)


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
    settings = CompressionSettings.model_validate({"calibration": LOCAL})
    request = SweepRequest(model=model, compression=settings, ratios=(0.25, 0.5))
    sweep = sweeps.create_sweep(resources, OPERATOR, request).sweep
    stored = [jobs.get_job(resources, OPERATOR, each.id).gpu_bytes for each in sweep.jobs]
    assert stored == [needed(dense, ratio=ratio) for ratio in (0.25, 0.5)]
