"""What a compression will make and take, told before it runs: torch-free arithmetic."""

from __future__ import annotations

from intraslice_core.estimates.dense import DenseModel, describe_dense, read_dense
from intraslice_core.estimates.memory import peak_memory
from intraslice_core.estimates.sizes import Estimate, estimate
from intraslice_core.estimates.work import stage_work

__all__ = [
    "DenseModel",
    "Estimate",
    "describe_dense",
    "estimate",
    "peak_memory",
    "read_dense",
    "stage_work",
]
