"""The README.md of a compressed checkpoint: what was done, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

CARD = "README.md"


def write_model_card(directory: Path, report: Mapping[str, Any]) -> Path:
    """Write the card.

    Args:
        directory: the compressed checkpoint.
        report: a `CompressionReport` as JSON values.
    """
    environment = Environment(
        loader=PackageLoader("intraslice_core.checkpoints"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    card = directory / CARD
    text = environment.get_template("model_card.md.j2").render(
        report, licences=sorted(file.name for file in directory.glob("LICENSE*"))
    )
    card.write_text(text, encoding="utf-8")
    return card
