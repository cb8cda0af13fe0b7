"""The README.md of a compressed checkpoint: what was done, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
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
    environment.filters["named"] = _named
    card = directory / CARD
    text = environment.get_template("model_card.md.j2").render(
        report, licences=sorted(file.name for file in directory.glob("LICENSE*"))
    )
    card.write_text(text, encoding="utf-8")
    return card


def _named(source: str | Sequence[Mapping[str, Any]]) -> str:
    """A source, or a mixture with its weights; of paths the last part, the rest is private."""
    if isinstance(source, str):
        return f"`{_last_part(source)}`"
    return ", ".join(f"`{_last_part(one['source'])}` (weight {one['weight']:g})" for one in source)


def _last_part(source: str) -> str:
    return source.split("/")[-1]


MODEL_CARD = "README.md"


def base_licence(directory: Path) -> str | None:
    """What the model card names, or else the file with the licence's text; None where neither is.

    Args:
        directory: the dense checkpoint.
    """
    card = directory / MODEL_CARD
    named = (metadata_load(card) or {}).get("license") if card.is_file() else None
    if isinstance(named, str):
        return named
    if isinstance(named, list) and named:
        return ", ".join(map(str, named))
    files = sorted(file.name for file in directory.glob("LICENSE*"))
    return f"see {files[0]}" if files else None
