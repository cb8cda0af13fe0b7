"""Settings of a GGUF model, named as in config.json; every key of the file is accounted for.

Each metadata key and each tensor is read, or listed here with the reason why it changes nothing, or
the file is rejected with its name. The module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from intraslice_core.checkpoints.gguf.header import GgufArray, GgufHeader, read_array
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.families import COMPRESSED_FAMILIES, FAMILIES, Family
from intraslice_core.families.gguf import (
    GGUF_FUSED_QKV,
    GGUF_LAYER_MODULES,
    GGUF_OUTER_MODULES,
    ROPE_TABLES,
    GgufSettings,
    GgufTable,
    common_settings,
)

GGUF_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.gguf.architecture: family
        for family in (FAMILIES | COMPRESSED_FAMILIES).values()
        if family.gguf is not None
    }
)
"""Families whose GGUF files are read, by llama.cpp's name of the architecture."""

_READ_ELSEWHERE = (
    "general.architecture",
    "general.alignment",  # by the header's parser
    "split.no",
    "split.count",
    "split.tensors.count",  # by the reader of split files
    "tokenizer.",  # by the vocabulary, which has a list of its own
)
"""Keys, and prefixes of keys, that other modules of this package read."""

_DESCRIPTIVE = (
    "general.",  # name, authors, licence, languages, sources, recommended sampling
    "quantize.imatrix.",  # calibration text of the quantisation
    "GGUF.",  # format version and counts, in old files
)
"""Prefixes of keys that say nothing about the function of the model."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "expert_count": (0,),  # no mixture of experts
        "expert_used_count": (0,),
        "attention.causal": (True,),
        "attention.max_alibi_bias": (0.0,),
        "attention.clamp_kqv": (0.0,),
        "nextn_predict_layers": (0,),  # no layers that predict later tokens
        "pooling_type": (0,),
    }
)
"""Keys of features that the families lack, with the values that say so."""

_MODEL_TYPE = "general.type"
_MAX_NUMBERS = 4_096
_LAYER = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """Family and settings of a GGUF model."""

    family: Family
    """Family of the tensors; `settings` may name a derived model type."""
    table: GgufTable
    settings: dict[str, Any]
    """Settings by their names in config.json, with `model_type`."""


def describe_gguf(header: GgufHeader, read_table: Callable[[str], list[float]]) -> GgufModel:
    """Return family and settings of a model.

    Args:
        header: header of the file or files.
        read_table: returns the values of a tensor with rotary factors.

    Raises:
        BrokenCheckpointError: if a setting is missing or invalid.
        UnsupportedArchitectureError: naming the architecture, key or tensor that is not supported.
    """
    family = _family(header)
    table = family.gguf
    assert table is not None  # by the construction of GGUF_FAMILIES
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    values = {key: _plain(value) for key, value in header.values.items()}
    gguf = GgufSettings(
        header.name,
        table.architecture,
        values,
        shapes,
        read_table,
        layers_differ=table.layers_differ,
    )
    settings: dict[str, Any] = {"model_type": family.model_type}
    settings |= common_settings(gguf, table) | table.settings(gguf)
    _require_all_read(header, gguf)
    _require_known_tensors(header, table, settings["num_hidden_layers"])
    return GgufModel(family=family, table=table, settings=settings)


def describe_header(header: GgufHeader) -> GgufModel:
    """Return family and settings without reading a tensor; rotary tables get placeholders.

    Raises:
        BrokenCheckpointError: if a setting is missing or invalid.
        UnsupportedArchitectureError: naming the architecture, key or tensor that is not supported.
    """
    return describe_gguf(header, lambda name: [1.0] * header.tensors[name].elements)


def model_type_of(header: GgufHeader) -> str | None:
    """Return transformers' model type, or llama.cpp's name of an architecture that is not read."""
    family = GGUF_FAMILIES.get(header.architecture or "")
    return header.architecture if family is None else family.model_type


def _family(header: GgufHeader) -> Family:
    kind = header.values.get(_MODEL_TYPE, "model")
    if kind != "model":
        raise UnsupportedArchitectureError(
            f"{header.name}: {_MODEL_TYPE} is {str(kind)[:64]!r}, not a language model",
            field="model",
            hint="merge an adapter into its base model first" if kind == "adapter" else None,
        )
    family = GGUF_FAMILIES.get(header.architecture or "")
    if family is None:
        raise UnsupportedArchitectureError(
            f"{header.name}: GGUF files of architecture {header.architecture!r} are not supported",
            field="model",
            hint=f"give the model as safetensors; GGUF: {', '.join(GGUF_FAMILIES)}",
        )
    return family


def _plain(value: Any) -> Any:
    """Return a value with short arrays of numbers as tuples; other arrays stay locations."""
    if isinstance(value, GgufArray) and value.items <= _MAX_NUMBERS:
        return tuple(read_array(value))
    return value


def _require_all_read(header: GgufHeader, gguf: GgufSettings) -> None:
    """Raise if a metadata key is neither read nor known to change nothing.

    Raises:
        UnsupportedArchitectureError: naming the key and its value.
    """
    prefix = f"{gguf.architecture}."
    for key, value in gguf.unread().items():
        neutral = _NEUTRAL.get(key.removeprefix(prefix), ())
        if value not in neutral:
            raise gguf.unsupported(key.removeprefix(prefix), _shown(value))
    for key, value in header.values.items():
        if not key.startswith((prefix, *_READ_ELSEWHERE, *_DESCRIPTIVE)):
            raise UnsupportedArchitectureError(
                f"{header.name}: the metadata key {key[:64]} = {_shown(value)} is unknown",
                field="model",
                hint="give the model as safetensors",
            )


def _shown(value: Any) -> str:
    return f"array of {value.items}" if isinstance(value, GgufArray) else repr(value)[:80]


def _require_known_tensors(header: GgufHeader, table: GgufTable, layers: int) -> None:
    """Raise if a tensor has no place in the family.

    Raises:
        UnsupportedArchitectureError: naming the tensor.
    """
    modules = {*GGUF_LAYER_MODULES, GGUF_FUSED_QKV, *table.fused}
    for name in header.tensors:
        match = _LAYER.fullmatch(name)
        outer = name.rpartition(".")[0] in GGUF_OUTER_MODULES
        in_layer = match is not None and int(match[1]) < layers and match[2] in modules
        if not (outer or in_layer or name in ROPE_TABLES):
            raise UnsupportedArchitectureError(
                f"{header.name}: tensor {name[:64]} has no place in {table.architecture} models",
                field="model",
                hint="give the model as safetensors",
            )


def missing_tensor(header: GgufHeader, name: str) -> BrokenCheckpointError:
    """Return the error for a tensor that the file lacks."""
    return BrokenCheckpointError(f"{header.name}: tensor {name} is missing", field="model")
