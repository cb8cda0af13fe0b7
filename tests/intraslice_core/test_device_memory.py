"""Too little memory of a device becomes a typed error, after smaller batches were tried."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.device_memory import (
    BatchSize,
    is_out_of_memory,
    lacks_memory,
    lowered_batches_to,
    out_of_device_memory,
    out_of_memory_reported,
    says_out_of_memory,
)
from intraslice_core.errors import OutOfDeviceMemoryError
from intraslice_core.evaluation.speeds import _error
from intraslice_core.ranks import Ranks

MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.25 MiB is free. This process has 79.10 GiB memory in use."
)


def test_the_error_has_the_sizes_and_the_setting_to_lower() -> None:
    error = out_of_device_memory(MESSAGE, "compression.batch_size")
    assert error.code == "out_of_device_memory"
    assert (error.needed_bytes, error.free_bytes) == (20 * 2**20, 1_310_720)
    assert error.total_bytes == pytest.approx(79.11 * 2**30)
    assert error.field == "compression.batch_size"
    for part in ("20.00 MiB", "1.25 MiB", "79.11 GiB", "lower compression.batch_size"):
        assert part in str(error)


def test_an_unknown_message_has_no_sizes() -> None:
    error = out_of_device_memory("CUDA error: out of memory", "compression.batch_size")
    assert (error.needed_bytes, error.free_bytes, error.total_bytes) == (None, None, None)
    assert "too little memory" in error.message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(MESSAGE),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 18.02 GB). Tried to allocate 1.00 GB"
        ),
    ],
)
def test_errors_of_torch_and_its_libraries_are_translated(error: RuntimeError) -> None:
    with (
        pytest.raises(OutOfDeviceMemoryError) as caught,
        out_of_memory_reported(lambda: "evaluation.context_length"),
    ):
        raise error
    assert caught.value.field == "evaluation.context_length"
    assert caught.value.__cause__ is error


def test_a_failed_allocation_of_host_memory_is_a_lack_of_memory_but_not_the_devices() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert lacks_memory(caught.value)
    assert not is_out_of_memory(caught.value)
    assert not lacks_memory(RuntimeError("The size of tensor a (2) must match"))


def test_other_errors_pass_unchanged() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)")
    with pytest.raises(RuntimeError) as caught, out_of_memory_reported("compression.batch_size"):
        raise error
    assert caught.value is error


def test_a_batch_is_halved_until_it_fits_and_stays_small() -> None:
    batch, attempts, undone, warnings = BatchSize(requested=8), [], [], []

    def attempt(size: int) -> str:
        attempts.append(size)
        if size > 2:
            raise torch.OutOfMemoryError(MESSAGE)
        return f"result of {size}"

    with lowered_batches_to(warnings.append):
        assert batch.repeat(attempt, undo=lambda: undone.append(batch.size)) == "result of 2"
        assert batch.repeat(attempt) == "result of 2"
    assert attempts == [8, 4, 2, 2]
    assert undone == [4, 2]
    assert [warning.split(":")[0] for warning in warnings] == [
        "compression.batch_size was lowered from 8 to 4",
        "compression.batch_size was lowered from 4 to 2",
    ]


def test_a_batch_of_one_that_does_not_fit_names_another_setting() -> None:
    batch, attempts = BatchSize(requested=3), []

    def attempt(size: int) -> None:
        attempts.append(size)
        raise torch.OutOfMemoryError(MESSAGE)

    with pytest.raises(OutOfDeviceMemoryError) as caught:
        batch.repeat(attempt)
    assert attempts == [3, 1]
    assert caught.value.field == "compression.calibration.sequence_length"


class Disagreeing(Ranks):
    """Ranks that cannot abandon an attempt, since others have begun its next operation."""

    def abandon(self) -> bool:
        return False


def test_a_batch_is_not_repeated_where_the_other_ranks_cannot_abandon_it() -> None:
    batch, attempts = BatchSize(requested=4, ranks=Disagreeing()), []

    def attempt(size: int) -> None:
        attempts.append(size)
        raise torch.OutOfMemoryError(MESSAGE)

    with pytest.raises(OutOfDeviceMemoryError):
        batch.repeat(attempt)
    assert attempts == [4]


def test_tensors_of_a_failed_attempt_are_freed_before_the_next() -> None:
    alive: list[int] = []

    class Held:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def fail() -> None:
        held = [Held()]
        held.append(held)  # a cycle, as in a graph of gradients
        raise torch.OutOfMemoryError(MESSAGE)

    def attempt(size: int) -> int:
        assert alive == []
        if size > 1:
            fail()
        return size

    assert BatchSize(requested=4).repeat(attempt) == 1


def test_another_error_is_not_repeated() -> None:
    attempts: list[int] = []

    def attempt(size: int) -> None:
        attempts.append(size)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        BatchSize(requested=8).repeat(attempt)
    assert attempts == [8]


def test_a_timing_process_without_memory_is_the_same_error() -> None:
    assert says_out_of_memory(f"torch.OutOfMemoryError: {MESSAGE}")
    assert isinstance(_error(f"torch.OutOfMemoryError: {MESSAGE}"), OutOfDeviceMemoryError)
    assert _error("exit code 7").code == "measurement_failed"
