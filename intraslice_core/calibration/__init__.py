"""Calibration data: from the name of a source to windows of tokens."""

from __future__ import annotations

from intraslice_core.calibration.sources import VALID_SOURCES, Part, load_text
from intraslice_core.calibration.tokens import (
    calibration_hash,
    calibration_tokens,
    tokenise_documents,
)

__all__ = [
    "VALID_SOURCES",
    "Part",
    "calibration_hash",
    "calibration_tokens",
    "load_text",
    "tokenise_documents",
]
