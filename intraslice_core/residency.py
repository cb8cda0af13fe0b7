"""Places of hidden states and of whole models, and factorisations in place, by the cost model.

They are decided once per run, when it begins or before a stage: on a GPU by its free memory, on a
CPU by the memory that the process may use, whoever uses it now, so that runs repeat bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import StageBytes, stage_bytes
from intraslice_core.cost_model.memory import PROCESS_BYTES
from intraslice_core.device import DeviceMemory, HostMemory, TensorMemory, resolve_device
from intraslice_core.device_memory import free_device_memory
from intraslice_core.host_limit import host_memory_bytes, runs_at_once
from intraslice_core.plan import ModelGeometry

DEVICE_SHARE = 0.8
"""Share of a GPU's free memory, or of the host's, that an estimate may take.

The rest is for the work space of kernels, fragmentation, and errors of the estimate.
"""


@dataclass(frozen=True, kw_only=True)
class StatePlacement:
    """Memory of the hidden states, and the reason for the choice."""

    memory: TensorMemory
    message: str | None
    """Explanation for the log; None on a CPU with enough memory, where there is no choice."""
    in_place: bool = False
    """True if there is too little memory for copies of wide second moments."""


def place_hidden_states(
    geometry: ModelGeometry,
    config: CompressionConfig,
    device: torch.device,
    item_bytes: tuple[int, int],
    offload_dir: Path | None,
    processes: int = 1,
) -> StatePlacement:
    """Choose the memory of the hidden states of all stages, and how moments are factorised.

    Args:
        geometry: dimensions of the dense model.
        config: settings of the compression.
        device: compute device.
        item_bytes: bytes per number in the compute dtype, and per stored weight.
        offload_dir: directory for hidden states that do not fit on the device; None keeps them in
            host memory.
        processes: number of processes of this run on the host, whose part of the memory they share.
    """
    copied = stage_bytes(geometry, config, *item_bytes)
    in_place = stage_bytes(geometry, config, *item_bytes, in_place=True)
    if device.type != "cuda":
        limit = host_memory_bytes() // (processes * runs_at_once())
        return _placed_on_host(copied, offload_dir, limit, saves=in_place != copied)
    free = free_device_memory(device)
    needed = max(stage.device for stage in copied.values())
    is_short = needed > DEVICE_SHARE * free and in_place != copied
    note = f"; {_in_place_message(needed)}" if is_short else ""
    states, needed = _largest(in_place if is_short else copied)
    sizes = f"{states / 1e9:.2f} GB of hidden states"
    memory: TensorMemory
    if needed <= DEVICE_SHARE * free:
        memory = DeviceMemory(device)
        message = f"{sizes} stay on {device}, which has {free / 1e9:.1f} GB free"
    else:
        memory = HostMemory(offload_dir, page_locked=offload_dir is None)
        place = "host memory" if offload_dir is None else str(offload_dir)
        message = (
            f"{sizes} lie in {place}: with them a stage needs {needed / 1e9:.2f} GB, and {device} "
            f"has {free / 1e9:.2f} GB free"
        )
    return StatePlacement(memory=memory, message=message + note, in_place=is_short)


def _placed_on_host(
    copied: dict[str, StageBytes], offload_dir: Path | None, limit: int, *, saves: bool
) -> StatePlacement:
    """Return the placement on a CPU.

    Args:
        copied: memory of the stages with copies of second moments.
        offload_dir: directory for hidden states; None keeps them in memory.
        limit: memory of the host for this process, in bytes.
        saves: whether factorisations in place need less.
    """
    memory = HostMemory(offload_dir)
    in_files = offload_dir is not None
    stage = max(stage.device + (0 if in_files else stage.host) for stage in copied.values())
    needed = PROCESS_BYTES + stage
    if not saves or needed <= DEVICE_SHARE * limit:
        return StatePlacement(memory=memory, message=None)
    message = f"{_in_place_message(needed)}, and {limit / 1e9:.2f} GB of the host are for this run"
    return StatePlacement(memory=memory, message=message, in_place=True)


def _in_place_message(needed: int) -> str:
    """Return the reason for factorisations in place."""
    return f"moments are factorised in place: with copies a stage needs {needed / 1e9:.2f} GB"


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
