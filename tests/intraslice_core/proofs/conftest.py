"""Compressed models of every family, made once for all proofs that use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_checkpoint


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A dense checkpoint, the compressed one, and its report."""

    dense: Path
    out: Path
    report: CompressionReport


@pytest.fixture(scope="session")
def compressed_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compressed]:
    """Return a function that compresses a family's variant by 30 %, without verification."""
    cache: dict[str, Compressed] = {}

    def compressed(variant: str) -> Compressed:
        if variant not in cache:
            folder = tmp_path_factory.mktemp(variant)
            dense = tiny_checkpoint(folder / "dense", variant)
            config = CompressionConfig(
                ratio=0.3,
                round_to=1,
                calibration=CalibrationConfig(source="pydoc", samples=32, sequence_length=32),
            )
            report = compress_unverified(dense, folder / "out", config)
            cache[variant] = Compressed(dense=dense, out=folder / "out", report=report)
        return cache[variant]

    return compressed
