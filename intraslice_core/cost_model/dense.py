"""Description of the dense model, read from its settings and file headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from intraslice_core.checkpoints.gguf.description import describe_header
from intraslice_core.checkpoints.gguf.parts import read_gguf_header
from intraslice_core.checkpoints.inspection import (
    CONFIG_FILE,
    ModelFacts,
    inspect_model,
    read_json_object,
)
from intraslice_core.config import SUPPORTED_MODEL_TYPES
from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families import FAMILIES
from intraslice_core.plan import ModelGeometry

_MAX_LAYERS = 10_000
"""Largest accepted number of layers.

A plan has one entry per layer, so a larger number is a mistake or an attack.
"""


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """Facts about a dense model from its settings and file headers."""

    facts: ModelFacts
    geometry: ModelGeometry | None
    """Dimensions of the model; None where the settings are incomplete or impossible."""
    item_bytes: int
    """Bytes per stored weight, after a conversion to safetensors."""
    max_positions: int | None
    converted: bool
    """True if the file is converted to safetensors before it is compressed."""


def read_dense(path: Path) -> DenseModel:
    """Describe a model from a directory of safetensors or a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a file header is malformed.
        UnsupportedArchitectureError: if the architecture is not supported; lists those that are.
    """
    if not path.is_dir():
        return _read_gguf(path)
    facts = inspect_model(path)
    if facts.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedArchitectureError(
            f"model type {facts.model_type!r} is not supported",
            field="model",
            hint=f"supported: {', '.join(SUPPORTED_MODEL_TYPES)}",
        )
    return describe_dense(facts, read_json_object(path / CONFIG_FILE))


def _read_gguf(path: Path) -> DenseModel:
    facts, header = inspect_model(path), read_gguf_header(path)
    settings = describe_header(header).settings
    facts = replace(facts, model_type=settings["model_type"])
    return describe_dense(facts, settings, unpacked_item_bytes=header.item_bytes)


def describe_dense(
    facts: ModelFacts, settings: Mapping[str, Any], *, unpacked_item_bytes: int | None = None
) -> DenseModel:
    """Combine file headers and settings into one description.

    Args:
        facts: facts from the file headers.
        settings: model settings, named as in config.json.
        unpacked_item_bytes: bytes per weight after the conversion; None without a conversion.
    """
    positions = settings.get("max_position_embeddings")
    stored = round(facts.bytes / facts.parameters) if facts.parameters else 0
    return DenseModel(
        facts=facts,
        geometry=_geometry(facts.model_type, settings),
        item_bytes=max(unpacked_item_bytes or stored, 1),
        max_positions=positions if type(positions) is int else None,
        converted=unpacked_item_bytes is not None,
    )


def _geometry(model_type: str | None, settings: Mapping[str, Any]) -> ModelGeometry | None:
    """Return the dimensions, or None where the settings are incomplete or impossible."""
    if model_type not in FAMILIES:
        return None
    layers = settings.get("num_hidden_layers", 0)
    if type(layers) is not int or layers > _MAX_LAYERS:
        return None
    try:
        return FAMILIES[model_type].geometry(settings)
    except ValidationError:
        return None
