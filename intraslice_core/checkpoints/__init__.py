"""Checkpoints in and out: sources, reader, writer, model card."""

from __future__ import annotations

from intraslice_core.checkpoints.reader import CheckpointReader, StoredTensors, check_finite
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.checkpoints.writer import (
    CheckpointWriter,
    ensure_disk_space,
    require_free_output,
)

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "StoredTensors",
    "check_finite",
    "ensure_disk_space",
    "open_model",
    "require_free_output",
]
