"""Size, memory and work of a compression, estimated before it runs without importing torch."""

from __future__ import annotations

from intraslice_core.cost_model.dense import DenseModel, describe_dense, read_dense
from intraslice_core.cost_model.flops import StageFlops, stage_flops
from intraslice_core.cost_model.memory import StageBytes, peak_memory, stage_bytes
from intraslice_core.cost_model.sizes import Estimate, estimate
from intraslice_core.cost_model.work import stage_work

__all__ = [
    "DenseModel",
    "Estimate",
    "StageBytes",
    "StageFlops",
    "describe_dense",
    "estimate",
    "peak_memory",
    "read_dense",
    "stage_bytes",
    "stage_flops",
    "stage_work",
]
