"""A CUDA device for tests, and what a run has done with it.

It is a pretended one, on which work, waits and copies are recorded. With
`INTRASLICE_TEST_DEVICE=cuda`, where torch sees a GPU, it is that GPU; results and memory are then
checked, and the record is empty.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.progress import ProgressListener, ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.run import OpenedModel, Run
from tests.pretend_cuda.log import DeviceLog

REAL = os.environ.get("INTRASLICE_TEST_DEVICE") == "cuda" and torch.cuda.is_available()
"""True for tests on a real GPU, False on a pretended one."""
if not REAL:
    # Before the first backward pass of the process. Not on a real one, as torch knows a single
    # accelerator.
    from tests.pretend_cuda.session import PretendCuda

CALIBRATION = CalibrationConfig(source="pydoc", samples=8, sequence_length=32, self_share=0.0)
LARGE = 80 * 2**30

HOST_WORK: Mapping[str, str] = MappingProxyType(
    {
        "intraslice_core/sensitivity/hypernetwork.py": "a recurrent network of 64 units; its draws "
        "come from a generator of the host, so that they do not depend on the device",
        "intraslice_core/modeling/components_intraslice.py": "the reference of the verification, "
        "which is computed in float32 on the host",
    }
)
"""Files that may multiply or factorise matrices on the host, and why."""
TOLERATED_WAITS = 1.25
"""Largest ratio of a run's waits of the host for the device to those that were measured."""


@dataclass(kw_only=True)
class Observation:
    """Record of a run on the device."""

    log: DeviceLog | None = None
    """Operations, waits and copies; None on a real device."""
    peak: int = 0
    """Largest number of bytes allocated at once."""
    left: int = 0
    """Bytes that are still allocated after the run."""

    def require_clean(self, waits: int) -> None:
        """Raise if the run has mixed devices, worked on the host, waited too often or kept memory.

        Args:
            waits: number of waits that were measured in the same run. A change that needs more of
                them measures again, and says why in the table.
        """
        assert self.left == 0, f"{self.left} bytes are still allocated"
        assert self.peak > 0, "nothing was computed on the device"
        if self.log is None:
            return
        assert not self.log.mixed, self.log.summary()
        host = {line for _, line in self.log.host_flops if line.partition(":")[0] not in HOST_WORK}
        assert not host, f"work on the host: {sorted(host)}\n{self.log.summary()}"
        count = self.log.waits.total()
        message = f"{count} waits instead of {waits}\n{self.log.summary(30)}"
        assert count <= TOLERATED_WAITS * waits, message


@contextmanager
def observed(memory: int = LARGE) -> Iterator[Observation]:
    """Provide a device of a number of bytes, and observe the block."""
    observation = Observation()
    if REAL:
        with _bounded(memory):
            before = _allocated()
            torch.cuda.reset_peak_memory_stats()
            with _own_garbage():
                yield observation
                observation.peak = torch.cuda.max_memory_allocated() - before
                observation.left = _allocated() - before
        return
    with _own_garbage(), PretendCuda(children=True, memory=memory) as session:
        observation.log = session.log
        yield observation
        observation.left = _allocated()
        observation.peak = torch.cuda.max_memory_allocated()


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Let collections of garbage consider what is created in the block alone.

    For all modules that are imported, each takes a third of a second, and a run makes several.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _allocated() -> int:
    """Return the bytes that are allocated on the device, without what libraries keep."""
    gc.collect()
    if REAL:
        torch._C._cuda_clearCublasWorkspaces()
    return int(torch.cuda.memory_allocated())


@contextmanager
def _bounded(memory: int) -> Iterator[None]:
    """Bound the memory of the real device that this process may allocate."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(memory / total, 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# -- compressions ---------------------------------------------------------------------------------


def settings(**changes: Any) -> CompressionConfig:
    """Return settings of a small compression on the device."""
    values = {"ratio": 0.3, "round_to": 1, "calibration": CALIBRATION, "device": "cuda"}
    return CompressionConfig.model_validate(values | changes)


def compress(
    dense: Path,
    out: Path,
    config: CompressionConfig,
    on_progress: ProgressListener = ignore_progress,
) -> tuple[CompressionReport, list[str]]:
    """Write a checkpoint without verification; return the report and the warnings."""
    from intraslice_core.pipeline import _compress_checkpoint

    run = Run(on_progress=on_progress, should_cancel=never_cancelled)
    with run.reporting():
        opened = OpenedModel(reference=str(dense), directory=dense)
        return _compress_checkpoint(opened, out, config, run), run.warnings


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint by name."""
    return {
        name: tensor
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same_bytes(first: Path, second: Path) -> bool:
    """Return whether two checkpoints have the same weights bit for bit."""
    names = [sorted(file.name for file in place.glob("*.safetensors")) for place in (first, second)]
    return names[0] == names[1] and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names[0]
    )


def require_same_model(first: Path, second: Path) -> None:
    """Raise if two checkpoints differ by more than rounding.

    A real GPU rounds in another way than the CPU, so that its weights are compared by what they
    compute from noise: directions within a basis may have another sign.
    """
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.shape == after[name].shape, name
        if REAL:
            singular = [
                torch.linalg.matrix_norm(part.double().view(len(part), -1), "nuc")
                for part in (tensor, after[name])
            ]
            torch.testing.assert_close(*singular, rtol=1e-2, atol=1e-4)
        else:
            torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4)
