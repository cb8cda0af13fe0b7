"""Tensors of a checkpoint with Llama's names in a GGUF file, one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from intraslice_core.checkpoints import StoredTensors
from intraslice_core.checkpoints.gguf_conversion import LAYER_NAMES, OUTER_NAMES, ROPE_FACTORS
from intraslice_core.checkpoints.writer import sync_to_disk
from intraslice_core.config import GgufFormat
from intraslice_core.exports.gguf_file.layout import GgufLayout
from intraslice_core.exports.gguf_file.vocabulary import GgufVocabulary

_QUANTIZATIONS: Mapping[GgufFormat, tuple[GGMLQuantizationType, LlamaFileType]] = MappingProxyType(
    {
        "gguf-f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "gguf-q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }
)
_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
_QUERY = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")
_KEY = ("self_attn.k_proj.weight", "self_attn.k_proj.bias")
_PLACES = {own: place for place, own in LAYER_NAMES.items()}
_OUTER = {own: place for place, own in OUTER_NAMES.items()}


def write_gguf(
    file: Path,
    checkpoint: Path,
    layout: GgufLayout,
    vocabulary: GgufVocabulary,
    wanted: GgufFormat,
) -> None:
    """Write a model as one GGUF file, durably.

    Args:
        file: to make.
        checkpoint: written, with Llama's names and half-split rotary pairs.
        layout: its shapes.
        vocabulary: its tokenizer.
        wanted: what matrices become; vectors stay float32, and so rows that no block divides
            become float16.
    """
    quantization, file_type = _QUANTIZATIONS[wanted]
    writer = GGUFWriter(file, layout.architecture)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    layout.add_to(writer)
    vocabulary.add_to(writer)
    with StoredTensors(checkpoint) as reader:
        names = list(_gguf_names(reader, layout))
        for own, place in names:
            shape = reader.shape(own)
            kind = _kind(shape, quantization)
            packed = shape if kind is _F32 else quant_shape_to_byte_shape(shape, kind)
            _announce(writer, place, tuple(packed), kind)
        if layout.rope_factors is not None:
            _announce(writer, ROPE_FACTORS, (len(layout.rope_factors),), _F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for own, _ in names:
            tensor = _as_gguf_has_it(own, reader.tensor(own), layout)
            kind = _kind(tuple(tensor.shape), quantization)
            writer.write_tensor_data(quantize(tensor.numpy(), kind))
        if layout.rope_factors is not None:
            writer.write_tensor_data(np.array(layout.rope_factors, dtype=np.float32))
    writer.flush()
    writer.close()
    sync_to_disk(file)


def _gguf_names(reader: StoredTensors, layout: GgufLayout) -> Iterator[tuple[str, str]]:
    """Every tensor's own name and GGUF's; a layer without attention has no norm before it."""
    for own, place in _OUTER.items():
        if own in reader.names:
            yield own, place
    for layer, heads in enumerate(layout.query_heads):
        prefix = f"model.layers.{layer}."
        for own in (name for name in reader.names if name.startswith(prefix)):
            part, _, kind = own.removeprefix(prefix).rpartition(".")
            if heads == 0 and part == "input_layernorm":
                continue
            yield own, f"blk.{layer}.{_PLACES[part]}.{kind}"


def _announce(
    writer: GGUFWriter, place: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    """Tell of a tensor whose data comes later, by the shape of its stored bytes or floats."""
    if kind is _F32:
        size, dtype = int(np.prod(shape)) * 4, np.dtype(np.float32)
        writer.add_tensor_info(place, shape, dtype, size)
        return
    writer.add_tensor_info(place, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)


def _kind(shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) < 2:
        return _F32
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else _F16


def _as_gguf_has_it(name: str, tensor: Tensor, layout: GgufLayout) -> Tensor:
    """In float32; rows of q and k go from half-split heads to interleaved pairs."""
    values = tensor.float()
    if name.endswith(_QUERY):
        values = values * layout.query_factor
    if name.endswith((*_QUERY, *_KEY)):
        halves = values.view(-1, 2, layout.head_dim // 2, *values.shape[1:])
        values = halves.transpose(1, 2).reshape(values.shape)
    return values.contiguous()
