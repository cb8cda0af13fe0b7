"""Writer of GGUF files: converts the tensors of a checkpoint, one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import (
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TensorNameMap,
    get_tensor_name_map,
)
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.checkpoints.writer import sync_to_disk
from intraslice_core.config import GgufFormat
from intraslice_core.export.gguf_layout import GgufLayout
from intraslice_core.export.gguf_vocabulary import GgufVocabulary

_QUANTIZATIONS: Mapping[GgufFormat, tuple[GGMLQuantizationType, LlamaFileType]] = MappingProxyType(
    {
        "gguf-f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "gguf-q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }
)
_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
_QUERY = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")
_KEY = ("self_attn.k_proj.weight", "self_attn.k_proj.bias")
_MODEL_ARCHITECTURES = {name: number for number, name in MODEL_ARCH_NAMES.items()}


def write_gguf(
    file: Path,
    checkpoint: Path,
    layout: GgufLayout,
    vocabulary: GgufVocabulary,
    gguf_format: GgufFormat,
) -> None:
    """Write a model as one GGUF file and flush it to disk.

    Args:
        file: the output file.
        checkpoint: written checkpoint with the names of the family's own class.
        layout: architecture, shapes and settings of the model.
        vocabulary: the model's tokenizer.
        gguf_format: quantisation of matrices. Vectors are stored as float32, and matrices whose
            rows are not a multiple of the quantisation's block as float16.
    """
    quantization, file_type = _QUANTIZATIONS[gguf_format]
    writer = GGUFWriter(file, layout.architecture.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    layout.add_to(writer)
    vocabulary.add_to(writer)
    tables = layout.rotary.tables
    with StoredTensors(checkpoint) as reader:
        names = list(_gguf_names(reader, layout))
        for name, gguf_name in names:
            shape = reader.shape(name)
            kind = _tensor_type(shape, quantization)
            packed = shape if kind is _F32 else quant_shape_to_byte_shape(shape, kind)
            _add_tensor_info(writer, gguf_name, tuple(packed), kind)
        for name, factors in tables.items():
            _add_tensor_info(writer, name, (len(factors),), _F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _ in names:
            tensor = _gguf_tensor(name, reader.tensor(name), layout)
            kind = _tensor_type(tuple(tensor.shape), quantization)
            writer.write_tensor_data(quantize(tensor.numpy(), kind))
        for factors in tables.values():
            writer.write_tensor_data(np.array(factors, dtype=np.float32))
    writer.flush()
    writer.close()
    sync_to_disk(file)


def _gguf_names(reader: StoredTensors, layout: GgufLayout) -> Iterator[tuple[str, str]]:
    """Yield every tensor's name and its GGUF name, those outside the layers first.

    Raises:
        KeyError: if llama.cpp has no name for a tensor.
    """
    model = _MODEL_ARCHITECTURES[layout.architecture.name]
    gguf_names = get_tensor_name_map(model, len(layout.widths))
    for name in sorted(reader.names, key=lambda name: (".layers." in name, name)):
        yield name, _gguf_name(gguf_names, name)


def _gguf_name(gguf_names: TensorNameMap, name: str) -> str:
    gguf_name = gguf_names.get_name(name, try_suffixes=(".weight", ".bias"))
    if gguf_name is None:
        raise KeyError(f"tensor {name} has no name in GGUF")
    return gguf_name


def _add_tensor_info(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    """Add a tensor to the header, by the shape of its stored bytes or floats; data comes later."""
    if kind is _F32:
        size, dtype = int(np.prod(shape)) * 4, np.dtype(np.float32)
        writer.add_tensor_info(name, shape, dtype, size)
        return
    writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)


def _tensor_type(
    shape: tuple[int, ...], quantization: GGMLQuantizationType
) -> GGMLQuantizationType:
    if len(shape) < 2:
        return _F32
    block, _ = GGML_QUANT_SIZES[quantization]
    return quantization if shape[-1] % block == 0 else _F16


def _gguf_tensor(name: str, tensor: Tensor, layout: GgufLayout) -> Tensor:
    """Return a tensor in float32, as llama.cpp's architecture expects it.

    Norms get their shift and queries their factor. Rows of q and k may go from half-split to
    interleaved pairs, fused rows from [head][part][row] to [part][head][row].
    """
    values = tensor.float()
    module = name.rpartition(".")[0]
    if layout.norm_shift and name.endswith("norm.weight"):
        values = values + layout.norm_shift
    if layout.query_factor != 1.0 and module.endswith(layout.query_module):
        values = values * layout.query_factor
    if layout.architecture.interleaved and name.endswith((*_QUERY, *_KEY)):
        halves = values.view(-1, 2, layout.head_dim // 2, *values.shape[1:])
        values = halves.transpose(1, 2).reshape(values.shape)
    if layout.architecture.fused_per_head and module.endswith("query_key_value"):
        parts = values.view(-1, 3, layout.head_dim, *values.shape[1:])
        values = parts.transpose(0, 1).reshape(values.shape)
    return values.contiguous()
