"""Hidden states offloaded to files give the same result and leave no files behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from intraslice_core import device
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.device import HostMemory
from intraslice_core.errors import CompressionCancelledError, InsufficientDiskError
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.publication import UNVERIFIED
from tests.intraslice_core.tiny_models import tiny_llama

CONFIG = CompressionConfig(
    ratio=0.3,
    round_to=2,
    calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "dense")


def mapped_from(directory: Path) -> int:
    """Return the bytes mapped by this process from files in the directory, also deleted files."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"{directory}/" in line:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            total += last - first
    return total


@pytest.mark.parametrize("shape", [(3, 5), (0, 4)])
def test_copy_has_the_requested_shape_and_no_file_name(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    values = torch.arange(15, dtype=torch.bfloat16)[: shape[0] * shape[1]].view(shape)
    copy = HostMemory(tmp_path / "created").copy(values)
    assert torch.equal(copy, values)
    assert (copy.dtype, copy.shape) == (values.dtype, values.shape)
    assert list(tmp_path.rglob("states*")) == []
    assert (mapped_from(tmp_path) > 0) == (copy.numel() > 0)
    del copy
    assert mapped_from(tmp_path) == 0


def test_files_are_used_when_the_memory_is_used_up(tmp_path: Path) -> None:
    memory = HostMemory(tmp_path, memory_bytes=100)
    first = memory.empty((10,), torch.float64)
    assert mapped_from(tmp_path) == 0
    second = memory.empty((10,), torch.float64)
    assert mapped_from(tmp_path) > 0
    assert first.shape == second.shape == (10,)


def test_offloading_gives_the_same_bytes_and_uses_files(dense: Path, tmp_path: Path) -> None:
    peaks: dict[Stage, int] = {}

    def record(event: ProgressEvent) -> None:
        peaks[event.stage] = max(peaks.get(event.stage, 0), mapped_from(tmp_path / "states"))

    compress_model(str(dense), tmp_path / "plain", CONFIG, verify=False)
    compress_model(
        *(str(dense), tmp_path / "offloaded", CONFIG),
        offload_dir=tmp_path / "states",
        verify=False,
        on_progress=record,
    )
    for name in ("model.safetensors", "config.json"):
        plain, offloaded = (tmp_path / out / name for out in ("plain", "offloaded"))
        assert plain.read_bytes() == offloaded.read_bytes()
    hidden_states = 16 * 32 * 48 * 4
    assert peaks[Stage.COMPRESS] >= 2 * hidden_states
    assert peaks[Stage.ALLOCATE] > 0
    assert mapped_from(tmp_path / "states") == 0
    assert list((tmp_path / "states").iterdir()) == []


def test_cancelled_run_leaves_no_files(dense: Path, tmp_path: Path) -> None:
    reached: list[Stage] = []
    with pytest.raises(CompressionCancelledError):
        compress_model(
            *(str(dense), tmp_path / "out", CONFIG),
            offload_dir=tmp_path / "states",
            on_progress=lambda event: reached.append(event.stage),
            should_cancel=lambda: Stage.COMPRESS in reached,
        )
    assert list((tmp_path / "states").iterdir()) == []


def test_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(device.os, "posix_fallocate", full)
    with pytest.raises(InsufficientDiskError, match=r"no space for 8\.00 GB") as caught:
        HostMemory(tmp_path).empty((10**9,), torch.float64)
    assert caught.value.field == "offload_dir"
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InsufficientDiskError, match="cannot be written to"):
        HostMemory(tmp_path / "file").empty((1,), torch.float32)


def test_unverified_result_has_a_warning(dense: Path, tmp_path: Path) -> None:
    report = compress_model(str(dense), tmp_path / "out", CONFIG, verify=False)
    assert report.warnings == (UNVERIFIED,)
    assert not (tmp_path / "out" / "verification.json").exists()
