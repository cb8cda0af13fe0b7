"""The licence of a base model, as its files tell it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import metadata_load

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
