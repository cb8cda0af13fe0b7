"""Memory that a job needs on a GPU or a CPU, estimated when it is created and stored with it."""

from __future__ import annotations

from app.domain.worker import RequiredMemory
from app.services.admission import AdmittedJob
from intraslice_core.config import AUTO, CompressionConfig
from intraslice_core.cost_model import (
    DenseModel,
    estimate,
    fine_tuning_bytes,
    gpu_host_bytes,
    least_writing_bytes,
    plan_tournament,
    stage_bytes,
)
from intraslice_core.plan import ModelGeometry

CONTEXT_BYTES = 2**29
"""GPU memory of the CUDA context and its kernels, which belongs to no tensor."""
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def required_memory(admitted: AdmittedJob) -> RequiredMemory:
    """Return the memory that the job needs; unknown for a model that only a worker can read."""
    return RequiredMemory(
        gpu_bytes=required_gpu_bytes(admitted), host_bytes=required_cpu_bytes(admitted)
    )


def required_cpu_bytes(admitted: AdmittedJob) -> int | None:
    """Return the memory that the job needs on a CPU, by the cost model, with its evaluation."""
    dense = admitted.dense
    if dense is None or dense.geometry is None:
        return None
    model_type = dense.target_type(admitted.compression.target)
    return max(
        estimate(
            dense.geometry, dense.item_bytes, compression, admitted.evaluation, model_type
        ).least_memory_bytes
        for compression in _candidates(admitted.compression, dense, dense.geometry)
    )


def required_gpu_bytes(admitted: AdmittedJob) -> int | None:
    """Return the GPU memory that the job needs; None for a model that only a worker can read.

    It is the largest of the cost model's device bytes: of the stages that hold one layer at a time,
    with factorisations in place, of the dense model where it writes calibration text, and of
    fine-tuning. Evaluation and timing are not counted: they take what is left.
    """
    dense = admitted.dense
    if dense is None or dense.geometry is None:
        return None
    candidates = _candidates(admitted.compression, dense, dense.geometry)
    return CONTEXT_BYTES + max(
        _largest_step(compression, dense, dense.geometry) for compression in candidates
    )


def required_host_bytes(admitted: AdmittedJob) -> int | None:
    """Return the host memory that the job needs beside a GPU; None as `required_gpu_bytes`.

    Verification and evaluation are not counted: they are on the GPU where it is large enough.
    """
    dense = admitted.dense
    if dense is None or dense.geometry is None:
        return None
    return max(
        gpu_host_bytes(dense.geometry, compression, _item(compression, dense), dense.item_bytes)
        for compression in _candidates(admitted.compression, dense, dense.geometry)
    )


def _item(compression: CompressionConfig, dense: DenseModel) -> int:
    """Return the bytes per number in the compute dtype on a GPU.

    There `auto` is the stored dtype; 8-bit weights are computed with in 16 bits.
    """
    return _DTYPE_BYTES.get(compression.dtype, max(dense.item_bytes, 2))


def _candidates(
    compression: CompressionConfig, dense: DenseModel, geometry: ModelGeometry
) -> list[CompressionConfig]:
    """Return the settings of every candidate of method `auto`, or those of the only method."""
    if compression.method != AUTO:
        return [compression]
    model_type = dense.target_type(compression.target)
    plan = plan_tournament(compression, geometry, dense.item_bytes, model_type)
    return [candidate.config for candidate in plan.candidates]


def _largest_step(
    compression: CompressionConfig, dense: DenseModel, geometry: ModelGeometry
) -> int:
    """Return the device bytes of the largest step of one method."""
    item = _item(compression, dense)
    stages = stage_bytes(geometry, compression, item, dense.item_bytes, in_place=True)
    steps = [stage.device for stage in stages.values()]
    # A batch takes what memory is free, so that a single sequence is what must fit.
    steps.append(least_writing_bytes(geometry, compression, item))
    if compression.recover is not None:
        steps.append(_fine_tuning_bytes(compression, dense, geometry, item))
    return max(steps)


def _fine_tuning_bytes(
    compression: CompressionConfig, dense: DenseModel, geometry: ModelGeometry, item: int
) -> int:
    """Return the memory of fine-tuning: both models where it distils, and the graph of a batch."""
    assert compression.recover is not None
    model_type = dense.target_type(compression.target)
    expected = estimate(geometry, dense.item_bytes, compression, None, model_type)
    params = (expected.params_before, expected.params_after)
    return fine_tuning_bytes(geometry, compression.recover, params, item)
