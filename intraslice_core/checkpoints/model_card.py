"""Model cards of dense checkpoints; `reports.model_card` writes those of compressed ones."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import metadata_load

MODEL_CARD = "README.md"


def base_licence(directory: Path) -> str | None:
    """Return the licence named by the model card, else the name of the licence file, else None.

    Args:
        directory: the dense checkpoint.
    """
    card = directory / MODEL_CARD
    licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    if isinstance(licence, str):
        return licence
    if isinstance(licence, list) and licence:
        return ", ".join(map(str, licence))
    files = sorted(file.name for file in directory.glob("LICENSE*"))
    return f"see {files[0]}" if files else None
