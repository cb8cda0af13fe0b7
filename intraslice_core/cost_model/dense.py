"""The dense model, from its settings and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from intraslice_core.checkpoints.inspection import (
    CONFIG_FILE,
    ModelFacts,
    inspect_model,
    read_gguf_header,
    read_json_object,
)
from intraslice_core.config import GGUF_MODEL_TYPES, SUPPORTED_MODEL_TYPES
from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families import FAMILIES
from intraslice_core.plan import ModelGeometry

_GGUF_NAMES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "rope.dimension_count",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}


_MOST_LAYERS = 10_000
"""A plan has an entry for each; a larger number is a slip or an attack."""


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """What the headers tell; `geometry` is None where the settings leave something unsaid."""

    facts: ModelFacts
    geometry: ModelGeometry | None
    item_bytes: int
    """Of a stored weight, once the model is safetensors."""
    max_positions: int | None
    converted: bool
    """The file is unpacked into safetensors before it is compressed."""


def read_dense(place: Path) -> DenseModel:
    """A directory of safetensors or a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a header is not what it says it is.
        UnsupportedArchitectureError: listing what is supported.
    """
    facts = inspect_model(place)
    if facts.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedArchitectureError(
            f"model type {facts.model_type!r} is not supported",
            field="model",
            hint=f"supported: {', '.join(SUPPORTED_MODEL_TYPES)}",
        )
    if place.is_dir():
        return describe_dense(facts, read_json_object(place / CONFIG_FILE))
    if facts.model_type not in GGUF_MODEL_TYPES:
        raise UnsupportedArchitectureError(
            f"GGUF files of architecture {facts.model_type!r} are not supported",
            field="model",
            hint="give the model as safetensors",
        )
    header = read_gguf_header(place)
    prefix = f"{header.architecture}."
    settings: dict[str, Any] = {
        name: header.settings.get(prefix + key) for name, key in _GGUF_NAMES.items()
    }
    settings["tie_word_embeddings"] = header.tied
    return describe_dense(facts, settings, unpacked_item_bytes=header.item_bytes)


def describe_dense(
    facts: ModelFacts, settings: Mapping[str, Any], *, unpacked_item_bytes: int | None = None
) -> DenseModel:
    """Put together what headers and settings say.

    Args:
        facts: from the headers.
        settings: named as in config.json.
        unpacked_item_bytes: where the file is converted first: of a weight, afterwards.
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
    """The dimensions, or None where the settings leave one unsaid or say something impossible."""
    if model_type not in FAMILIES:
        return None
    layers = settings.get("num_hidden_layers", 0)
    if type(layers) is not int or layers > _MOST_LAYERS:
        return None
    try:
        return FAMILIES[model_type].geometry(settings)
    except ValidationError:
        return None
