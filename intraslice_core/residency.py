"""Places of hidden states and of whole models, on the GPU where they fit by the cost model.

Places are decided once per run, when it begins or before a stage, by the free memory of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import StageBytes, stage_bytes
from intraslice_core.device import DeviceMemory, HostMemory, TensorMemory, resolve_device
from intraslice_core.device_memory import free_device_memory
from intraslice_core.plan import ModelGeometry

DEVICE_SHARE = 0.8
"""Share of a GPU's free memory that an estimate may take.

The rest is for the work space of kernels, fragmentation, and errors of the estimate.
"""


@dataclass(frozen=True, kw_only=True)
class StatePlacement:
    """Memory of the hidden states, and the reason for the choice."""

    memory: TensorMemory
    message: str | None
    """Explanation for the log; None on a CPU, where there is no choice."""


def place_hidden_states(
    geometry: ModelGeometry,
    config: CompressionConfig,
    device: torch.device,
    item_bytes: tuple[int, int],
    offload_dir: Path | None,
) -> StatePlacement:
    """Choose the memory of the hidden states of all stages.

    Args:
        geometry: dimensions of the dense model.
        config: settings of the compression.
        device: compute device.
        item_bytes: bytes per number in the compute dtype, and per stored weight.
        offload_dir: directory for hidden states that do not fit on the device; None keeps them in
            host memory.
    """
    if device.type != "cuda":
        return StatePlacement(memory=HostMemory(offload_dir), message=None)
    stages = stage_bytes(geometry, config, *item_bytes)
    states, needed = _largest(stages)
    free = free_device_memory(device)
    sizes = f"{states / 1e9:.2f} GB of hidden states"
    if needed <= DEVICE_SHARE * free:
        message = f"{sizes} stay on {device}, which has {free / 1e9:.1f} GB free"
        return StatePlacement(memory=DeviceMemory(device), message=message)
    place = "host memory" if offload_dir is None else str(offload_dir)
    message = (
        f"{sizes} lie in {place}: with them a stage needs {needed / 1e9:.2f} GB, and {device} has "
        f"{free / 1e9:.2f} GB free"
    )
    return StatePlacement(
        memory=HostMemory(offload_dir, page_locked=offload_dir is None), message=message
    )


def _largest(stages: dict[str, StageBytes]) -> tuple[int, int]:
    """Return the largest hidden states of a stage, and the largest need of one with them."""
    return (
        max(stage.host for stage in stages.values()),
        max(stage.host + stage.device for stage in stages.values()),
    )


@dataclass(frozen=True, kw_only=True)
class ModelPlacement:
    """Device of a stage that loads whole models."""

    device: str
    message: str | None
    """Explanation for the log; None where the requested device is used."""


def place_models(device: str, needed: int, work: str) -> ModelPlacement:
    """Choose the device of a stage that loads whole models.

    Args:
        device: requested device, as in the settings.
        needed: bytes that the stage takes on it.
        work: name of the stage for the log.

    Returns:
        The requested device, or the CPU where a GPU has too little free memory.
    """
    resolved = resolve_device(device)
    if resolved.type != "cuda":
        return ModelPlacement(device=device, message=None)
    free = free_device_memory(resolved)
    if needed <= DEVICE_SHARE * free:
        return ModelPlacement(device=device, message=None)
    message = (
        f"{work} takes place on the CPU: it needs {needed / 1e9:.2f} GB, and {resolved} has "
        f"{free / 1e9:.2f} GB free"
    )
    return ModelPlacement(device="cpu", message=message)
