"""Whole documents of text sources, for tests that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intraslice_core.calibration import Part, Reading, load_text


def load_documents(source: str | Path, *, part: Part = "calibration", **settings: Any) -> list[str]:
    """Return the documents of a source, put together from their pieces."""
    documents: list[str] = []
    for piece in load_text(str(source), Reading(part=part, **settings)):
        if piece.begins:
            documents.append("")
        documents[-1] += piece.text
    return documents
