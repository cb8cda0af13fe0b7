"""Batches that are copied while others are computed have the values of a pass in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.pipeline import compress_model
from intraslice_core.transfers import (
    Batch,
    StagedTensor,
    device_batches,
    row_batches,
    transfers_for,
    zipped_batches,
)
from tests.intraslice_core.late_copies import LateTransfers, copy_late
from tests.intraslice_core.tiny_models import tiny_llama

CPU = torch.device("cpu")


def numbers() -> torch.Tensor:
    return torch.arange(30.0).view(10, 3)


def test_batches_cover_all_rows_in_order() -> None:
    assert row_batches(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert row_batches(0, 3) == []


def test_nothing_is_copied_where_the_tensor_is_on_the_compute_device() -> None:
    tensor = numbers()
    assert transfers_for([tensor], CPU) is None
    for batch in device_batches(tensor, 4, CPU):
        assert batch.values.data_ptr() == tensor[batch.rows].data_ptr()
        batch.replace(batch.values + 1)
    assert torch.equal(tensor, numbers() + 1)


def test_late_copies_give_the_values_of_a_pass_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = copy_late(monkeypatch)
    tensor, other = numbers(), torch.zeros(10, 3)
    for step in range(3):
        for batch in device_batches(tensor, 4, CPU):
            batch.write_to(other, batch.values * 10)
            batch.replace(batch.values * 2 + step)
    assert torch.equal(tensor, ((numbers() * 2) * 2 + 1) * 2 + 2)
    assert torch.equal(other, ((numbers() * 2) * 2 + 1) * 10)
    assert [copies.copies for copies in passes] == [9, 9, 9]


def test_several_tensors_advance_together(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_late(monkeypatch)
    first, second = numbers(), numbers() + 100
    for left, right in zipped_batches((first, second), row_batches(10, 4), CPU):
        right.replace(left.values + right.values)
    assert torch.equal(first, numbers())
    assert torch.equal(second, 2 * numbers() + 100)


def test_a_batch_is_uploaded_once_and_read_as_it_was_written() -> None:
    copies = LateTransfers()
    staged = StagedTensor(numbers(), CPU, copies)
    rows, following = slice(0, 4), slice(4, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intraslice_core.transfers._computing_stream", lambda device: None)
        before = staged.read(rows, following)
        assert staged.read(rows, following) is before
        assert copies.copies == 2
        staged.write(rows, before * 3)
        assert torch.equal(staged.read(rows, following), numbers()[rows] * 3)
        assert copies.copies == 3
        assert torch.equal(staged.read(following), numbers()[following])
        assert copies.copies == 3
        copies.wait()


def test_values_are_stored_in_the_dtype_of_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_late(monkeypatch)
    tensor = torch.zeros(4, 2, dtype=torch.bfloat16)
    for batch in device_batches(tensor, 2, CPU):
        batch.replace(torch.full((2, 2), 1.0))
    assert torch.equal(tensor, torch.ones(4, 2, dtype=torch.bfloat16))


def test_copies_have_ended_when_a_pass_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_late(monkeypatch)
    tensor = numbers()

    def advance(batch: Batch) -> None:
        batch.replace(batch.values + 1)
        raise RuntimeError("interrupted")

    batches = device_batches(tensor, 4, CPU)
    with pytest.raises(RuntimeError, match="interrupted"):
        advance(next(batches))
    batches.close()
    assert torch.equal(tensor[:4], numbers()[:4] + 1)
    assert torch.equal(tensor[4:], numbers()[4:])


@pytest.mark.parametrize("method", ["intraslice_plus", "modegpt", "transact", "slicegpt", "disp"])
def test_late_copies_change_no_byte_of_a_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(
        method=method,
        ratio=0.3,
        round_to=2,
        batch_size=3,
        calibration=CalibrationConfig(
            source="pydoc", samples=8, sequence_length=32, self_share=0.0
        ),
    )

    def compress(name: str) -> bytes:
        compress_model(str(dense), tmp_path / name, config, verify=False)
        return (tmp_path / name / "model.safetensors").read_bytes()

    expected = compress("in-place")
    passes = copy_late(monkeypatch)
    assert compress("late") == expected
    assert sum(copies.copies for copies in passes) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_and_writes_page_locked_memory_while_it_computes() -> None:
    device = torch.device("cuda")
    tensor = torch.randn(64, 512, 1024).pin_memory()
    matrix = torch.eye(1024, device=device) * 2
    expected = tensor * 2**6
    for _ in range(6):
        for batch in device_batches(tensor, 4, device):
            batch.replace(batch.values @ matrix)
    assert torch.equal(tensor, expected)
