"""GGUF export: the layout of architectures `llama` and `deci`, and the writer of the file.

`llama_layout` and `deci_layout` derive shapes and rotary factors from canonical settings.
`write_gguf` converts the tensors of a checkpoint with Llama's names, one in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.checkpoints.writer import sync_to_disk
from intraslice_core.config import GgufFormat
from intraslice_core.export.gguf_vocabulary import GgufVocabulary
from intraslice_core.families.canonical import CanonicalSettings, rope_of, rotary_embedding
from intraslice_core.families.gguf import GGUF_LAYER_MODULES, GGUF_OUTER_MODULES, ROPE_FACTORS
from intraslice_core.plan import LayerPlan

# -- layout of the file --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GgufLayout:
    """Architecture, shapes and settings of a GGUF file; sequences have one entry per layer."""

    architecture: Literal["llama", "deci"]
    query_heads: tuple[int, ...]
    """Number of query heads, 0 without attention."""
    key_value_heads: tuple[int, ...]
    widths: tuple[int, ...]
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...] | None
    """Divisors of the frequencies `rope_theta^(-j/m)`; None if all are 1."""
    query_factor: float
    """Factor on the queries: the square of the rotary embedding's attention factor."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the settings; per-layer values become arrays only where layers differ."""
        writer.add_vocab_size(self.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(self.hidden_size)
        writer.add_block_count(len(self.widths))
        writer.add_feed_forward_length(_scalar_or_list(self.widths))
        writer.add_head_count(_scalar_or_list(self.query_heads))
        writer.add_head_count_kv(_scalar_or_list(self.key_value_heads))
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.norm_eps)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.rope_theta)


def _scalar_or_list(sizes: tuple[int, ...]) -> int | Sequence[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def llama_layout(canonical: CanonicalSettings, shape: LayerPlan, pairs: Tensor) -> GgufLayout:
    """Return the layout of a `llama` model, whose layers have one shape.

    Args:
        canonical: settings of the dense model.
        shape: shape of every layer.
        pairs: kept rotary pairs of every head, (qk_pairs,).
    """
    layers = canonical["num_hidden_layers"]
    return _layout("llama", canonical, (shape,) * layers, pairs)


def deci_layout(canonical: CanonicalSettings, shapes: Sequence[LayerPlan]) -> GgufLayout:
    """Return the layout of a `deci` model: different MLP widths, dense attention or none."""
    pairs = torch.arange(canonical["head_dim"] // 2)
    return _layout("deci", canonical, shapes, pairs)


def _layout(
    architecture: Literal["llama", "deci"],
    canonical: CanonicalSettings,
    shapes: Sequence[LayerPlan],
    pairs: Tensor,
) -> GgufLayout:
    rotary = rotary_embedding(canonical, 0, torch.device("cpu"))
    rope = rope_of(canonical, canonical["layer_types"][0])
    theta = float(rope["rope_theta"])
    exponents = torch.arange(len(pairs), dtype=torch.float64) / len(pairs)
    factors = theta**-exponents / rotary.inv_freq.double()[pairs.cpu()]
    plain = torch.allclose(factors, torch.ones_like(factors), rtol=1e-6, atol=0.0)
    return GgufLayout(
        architecture=architecture,
        query_heads=tuple(shape.num_attention_heads for shape in shapes),
        key_value_heads=tuple(shape.num_key_value_heads for shape in shapes),
        widths=tuple(shape.intermediate_size for shape in shapes),
        head_dim=2 * len(pairs),
        hidden_size=canonical["hidden_size"],
        vocab_size=canonical["vocab_size"],
        context_length=canonical["max_position_embeddings"],
        norm_eps=float(canonical["norm_eps"]),
        rope_theta=theta,
        rope_factors=None if plain else tuple(factors.tolist()),
        query_factor=float(rotary.attention_scaling) ** 2,
    )


# -- writing of the file -------------------------------------------------------------------------

_QUANTIZATIONS: Mapping[GgufFormat, tuple[GGMLQuantizationType, LlamaFileType]] = MappingProxyType(
    {
        "gguf-f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "gguf-q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }
)
_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
_QUERY = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")
_KEY = ("self_attn.k_proj.weight", "self_attn.k_proj.bias")
_LAYER_MODULES = {module: gguf_module for gguf_module, module in GGUF_LAYER_MODULES.items()}
_OUTER_TENSORS = {
    f"{module}.weight": f"{gguf_module}.weight"
    for gguf_module, module in GGUF_OUTER_MODULES.items()
}


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
        checkpoint: written checkpoint with Llama's names and half-split rotary pairs.
        layout: architecture, shapes and settings of the model.
        vocabulary: the model's tokenizer.
        gguf_format: quantisation of matrices. Vectors are stored as float32, and matrices whose
            rows are not a multiple of the quantisation's block as float16.
    """
    quantization, file_type = _QUANTIZATIONS[gguf_format]
    writer = GGUFWriter(file, layout.architecture)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    layout.add_to(writer)
    vocabulary.add_to(writer)
    with StoredTensors(checkpoint) as reader:
        names = list(_gguf_names(reader, layout))
        for name, gguf_name in names:
            shape = reader.shape(name)
            kind = _tensor_type(shape, quantization)
            packed = shape if kind is _F32 else quant_shape_to_byte_shape(shape, kind)
            _add_tensor_info(writer, gguf_name, tuple(packed), kind)
        if layout.rope_factors is not None:
            _add_tensor_info(writer, ROPE_FACTORS, (len(layout.rope_factors),), _F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _ in names:
            tensor = _gguf_tensor(name, reader.tensor(name), layout)
            kind = _tensor_type(tuple(tensor.shape), quantization)
            writer.write_tensor_data(quantize(tensor.numpy(), kind))
        if layout.rope_factors is not None:
            writer.write_tensor_data(np.array(layout.rope_factors, dtype=np.float32))
    writer.flush()
    writer.close()
    sync_to_disk(file)


def _gguf_names(reader: StoredTensors, layout: GgufLayout) -> Iterator[tuple[str, str]]:
    """Yield every tensor's name and its GGUF name, without the norms of removed attention."""
    for name, gguf_name in _OUTER_TENSORS.items():
        if name in reader.names:
            yield name, gguf_name
    for layer, heads in enumerate(layout.query_heads):
        prefix = f"model.layers.{layer}."
        for name in (name for name in reader.names if name.startswith(prefix)):
            module, _, kind = name.removeprefix(prefix).rpartition(".")
            if heads == 0 and module == "input_layernorm":
                continue
            yield name, f"blk.{layer}.{_LAYER_MODULES[module]}.{kind}"


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
    """Return a tensor in float32; rows of q and k go from half-split to interleaved pairs."""
    values = tensor.float()
    if name.endswith(_QUERY):
        values = values * layout.query_factor
    if name.endswith((*_QUERY, *_KEY)):
        halves = values.view(-1, 2, layout.head_dim // 2, *values.shape[1:])
        values = halves.transpose(1, 2).reshape(values.shape)
    return values.contiguous()
