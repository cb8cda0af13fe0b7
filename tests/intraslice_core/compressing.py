"""Compression without the verification process, which takes seconds per model.

Proofs about saved files verify many of them in one process instead.
"""

from __future__ import annotations

from pathlib import Path

from intraslice_core.config import CompressionConfig
from intraslice_core.pipeline import _compress_checkpoint
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.run import OpenedModel, Run


def compress_unverified(dense: Path, out: Path, config: CompressionConfig) -> CompressionReport:
    """Write a compressed checkpoint to `out`, without the steps that follow the writing."""
    run = Run(on_progress=ignore_progress, should_cancel=never_cancelled)
    return _compress_checkpoint(
        OpenedModel(reference=str(dense), directory=dense), out, config, run
    )
