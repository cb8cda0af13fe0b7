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
    ModelFacts,
    inspect_model,
)
from intraslice_core.checkpoints.locations import located
from intraslice_core.checkpoints.stored_names import has_separate_head
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.families import COMPRESSED_FAMILIES, FAMILIES, require_supported_type
from intraslice_core.families.positions import learned_positions
from intraslice_core.families.wrappers import Wrapper, text_settings, wrapper_of
from intraslice_core.plan import ModelGeometry

_FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per weight of the result by the `dtype` of config.json."""
_DEQUANTIZED_BYTES = 2
"""Bytes per dequantised weight where config.json gives no `dtype`."""

_MAX_LAYERS = 10_000
"""Largest accepted number of layers.

A plan has one entry per layer, so a larger number is a mistake or an attack.
"""


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """Facts about a dense model from its settings and file headers."""

    facts: ModelFacts
    """Facts of all files; `model_type` is that of the language model."""
    geometry: ModelGeometry | None
    """Dimensions of the language model; None where the settings are incomplete or impossible."""
    item_bytes: int
    """Bytes per stored weight, after a conversion to safetensors."""
    max_positions: int | None
    learned_positions: int | None = None
    """Longest sequence that the table of learned positions allows; None without a table."""
    converted: bool
    """True if the file is converted to safetensors before it is compressed."""
    wrapper: Wrapper | None = None
    """Table of the multimodal wrapper around the language model, if there is one."""

    def target_type(self, target: str) -> str | None:
        """Return the model type that decides what the requested target supports."""
        model_type = self.facts.model_type
        if self.wrapper is None or model_type is None:
            return model_type
        return self.wrapper.target_type(target, model_type)


def read_dense(path: Path) -> DenseModel:
    """Describe a model from a directory of safetensors or a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a file header is malformed.
        UnsupportedArchitectureError: if the architecture is not supported; lists those that are.
    """
    path = located(path) if path.is_dir() else path
    if not path.is_dir():
        return _read_gguf(path)
    return _read_directory(path, inspect_model(path))


def _read_directory(path: Path, facts: ModelFacts) -> DenseModel:
    settings = read_json_object(path / CONFIG_FILE)
    wrapper = wrapper_of(settings)
    if wrapper is not None:
        settings = text_settings(wrapper, settings)
        facts = replace(facts, model_type=settings["model_type"])
    family = require_supported_type(facts.model_type, settings)
    tied = settings.get("tie_word_embeddings", family.facts.defaults["tie_word_embeddings"])
    settings["tie_word_embeddings"] = bool(tied) and not has_separate_head(path, family, wrapper)
    stored = _FLOAT_BYTES.get(str(settings.get("dtype") or settings.get("torch_dtype")))
    if facts.quantization is not None:
        unpacked = stored or _DEQUANTIZED_BYTES
        dense = describe_dense(facts, settings, unpacked_item_bytes=unpacked)
    else:
        dense = describe_dense(facts, settings)
        dense = dense if stored is None else replace(dense, item_bytes=stored)
    # The language model of a wrapper is copied to a checkpoint of its own.
    return dense if wrapper is None else replace(dense, wrapper=wrapper, converted=True)


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
        learned_positions=learned_positions({**settings, "model_type": facts.model_type}),
        converted=unpacked_item_bytes is not None,
    )


def _geometry(model_type: str | None, settings: Mapping[str, Any]) -> ModelGeometry | None:
    """Return the dimensions, or None where the settings are incomplete or impossible."""
    family = (FAMILIES | COMPRESSED_FAMILIES).get(model_type or "")
    if family is None:
        return None
    layers = settings.get("num_hidden_layers", 0)
    if type(layers) is not int or layers > _MAX_LAYERS:
        return None
    try:
        return family.geometry(settings)
    except ValidationError:
        return None
