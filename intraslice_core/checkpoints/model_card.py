"""Model cards: write that of a compressed checkpoint, read the licence from that of a dense one.

The card is the checkpoint's README.md: the settings, the sizes and the measured quality, rendered
from the compression report by a Jinja template.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from intraslice_core.config.calibration import WeightedSource
from intraslice_core.text_sources import DOMAIN_NAMES

MODEL_CARD = "README.md"


def write_model_card(
    directory: Path, report: Mapping[str, Any], sources: Sequence[WeightedSource]
) -> Path:
    """Write the model card of a compressed checkpoint and return its path.

    Args:
        directory: the compressed checkpoint.
        report: the `CompressionReport` as JSON values.
        sources: all calibration sources, with the text that the model wrote.
    """
    card = directory / MODEL_CARD
    text = _template().render(
        report,
        licences=sorted(file.name for file in directory.glob("LICENSE*")),
        domain_names=DOMAIN_NAMES,
        source_names=_source_names(sources),
        removed_layers=_removed_layers(report["plan"]["layers"]),
        shortcuts=any(layer.get("residual") for layer in report["plan"]["layers"]),
    )
    card.write_text(text, encoding="utf-8")
    return card


@functools.cache
def _template() -> Template:
    """Return the card's template; compiling it takes as long as compressing a tiny model."""
    environment = Environment(
        loader=PackageLoader("intraslice_core.checkpoints"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.get_template("model_card.md.j2")


def _removed_layers(plan: Sequence[Mapping[str, int]]) -> list[int]:
    """Return the numbers of the layers that keep no module."""
    return [
        number
        for number, layer in enumerate(plan)
        if not layer["num_attention_heads"] and not layer["intermediate_size"]
    ]


def _source_names(sources: Sequence[WeightedSource]) -> str:
    """Return the names of the calibration sources, those of a mixture with their weights.

    Only the last part of a path is named: the rest of it is private.
    """
    if len(sources) == 1:
        return f"`{_last_part(sources[0].source)}`"
    return ", ".join(f"`{_last_part(part.source)}` (weight {part.weight:.3g})" for part in sources)


def _last_part(source: str) -> str:
    return source.split("/")[-1]


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
