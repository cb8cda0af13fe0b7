"""Tensors of GGUF files in the names and layouts of a family's checkpoints.

Each tensor of the checkpoint is a stack of *pieces*: rows of a tensor in the file. Converters of
llama.cpp stack q, k and v in some files, some families stack them in their checkpoints. Pieces are
dequantised one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints.gguf.description import GgufModel, missing_tensor
from intraslice_core.checkpoints.gguf.header import GgufHeader, GgufTensor
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.families.canonical import (
    HEAD_NORMS,
    CanonicalSettings,
    layer_shapes,
    outer_shapes,
)
from intraslice_core.families.gguf import (
    GGUF_FUSED_QKV,
    GGUF_LAYER_MODULES,
    GGUF_OUTER_MODULES,
    ROPE_TABLES,
)

FLOAT_TYPES: Mapping[int, torch.dtype] = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Types of weights that keep their type."""

_QKV = ("attn_q", "attn_k", "attn_v")
_OPTIONAL_BIASES = (*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Modules that may lack a bias where the family's classes have one: it is zero then."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of a tensor in the file, or zeros."""

    source: str | None
    """Name in the file; None for a bias of zeros."""
    begin: int
    rows: int
    shape: tuple[int, ...]
    heads: int = 0
    """Heads whose rotary pairs are interleaved; 0 if the rows are in order."""
    offset: float = 0.0
    """Number that the file adds to the values."""


Plan = Mapping[str, tuple[Piece, ...]]
"""Pieces of every tensor of the checkpoint, by its name."""


def stored_dtype(header: GgufHeader) -> torch.dtype:
    """Return the most common type of the weights if it is a float type, else bfloat16."""
    weights: Counter[int] = Counter()
    for tensor in header.tensors.values():
        weights[tensor.kind] += tensor.elements
    return FLOAT_TYPES.get(weights.most_common(1)[0][0], torch.bfloat16)


def plan_tensors(
    header: GgufHeader, model: GgufModel, adapter: FamilyAdapter, config: PreTrainedConfig
) -> Plan:
    """Return the pieces of every tensor that the checkpoint must hold.

    Raises:
        BrokenCheckpointError: naming a tensor that is missing or has another shape.
        UnsupportedArchitectureError: naming a tensor of the file that the family has no place for.
    """
    settings = adapter.canonical_settings(config)
    planner = _Planner(header, model, settings)
    plan: dict[str, tuple[Piece, ...]] = {}
    modules = {canonical: name for name, canonical in GGUF_OUTER_MODULES.items()}
    for canonical, shape in outer_shapes(settings).items():
        module, _, kind = canonical.rpartition(".")
        piece = planner.piece("", modules[module], kind, shape)
        plan[adapter.checkpoint_name(canonical)] = (piece,)
    for layer in range(config.num_hidden_layers):
        pieces = planner.layer(layer, adapter.canonical_shapes(config, layer))
        for name, parts in _fused(adapter, pieces, settings["head_dim"]).items():
            plan[adapter.layer_prefix(layer) + name] = parts
    for name in header.tensors:
        if name not in planner.used and name not in ROPE_TABLES:
            raise UnsupportedArchitectureError(
                f"{header.name}: tensor {name} has no place in {adapter.model_type} models",
                field="model",
                hint="give the model as safetensors",
            )
    return plan


def _fused(
    adapter: FamilyAdapter, pieces: Mapping[str, Piece], head_dim: int
) -> dict[str, tuple[Piece, ...]]:
    """Return a layer's pieces by the family's names; fused modules have several."""
    rest = dict(pieces)
    named: dict[str, tuple[Piece, ...]] = {}
    for module, parts in adapter.family.fused.items():
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in rest:
                stacked = tuple(rest.pop(f"{part}.{kind}") for part in parts)
                if adapter.family.fused_per_head:
                    stacked = _per_head(stacked, head_dim)
                named[f"{module}.{kind}"] = stacked
    return named | {adapter.checkpoint_name(name): (piece,) for name, piece in rest.items()}


def _per_head(pieces: tuple[Piece, ...], head_dim: int) -> tuple[Piece, ...]:
    """Cut pieces of q, k and v, with equally many heads, into heads: q, k, v, q, k, v, …."""
    return tuple(
        replace(
            piece,
            begin=piece.begin + first,
            rows=head_dim,
            shape=(head_dim, *piece.shape[1:]),
            heads=1 if piece.heads else 0,
        )
        for first in range(0, pieces[0].rows, head_dim)
        for piece in pieces
    )


class _Planner:
    """Search for the pieces of canonical tensors in a file; `used` has the tensors found."""

    def __init__(self, header: GgufHeader, model: GgufModel, settings: CanonicalSettings) -> None:
        self._header = header
        self._table = model.table
        self._settings = settings
        self._modules = {canonical: name for name, canonical in GGUF_LAYER_MODULES.items()}
        self._modules |= model.table.modules
        self._stacks = {GGUF_FUSED_QKV: _QKV, **model.table.fused}
        self.used: set[str] = set()

    def layer(self, layer: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
        """Return the pieces of a decoder layer, by canonical name without prefix."""
        pieces = {}
        for canonical, canonical_shape in shapes.items():
            name, _, kind = canonical.rpartition(".")
            module = self._modules[name]
            shape = canonical_shape
            if name in HEAD_NORMS.values() and not self._settings["qk_norm_across_heads"]:
                shape = (self._settings["head_dim"],)
            pieces[canonical] = self.piece(f"blk.{layer}.", module, kind, shape)
        return pieces

    def piece(self, prefix: str, module: str, kind: str, shape: tuple[int, ...]) -> Piece:
        """Return the piece of one tensor.

        Raises:
            BrokenCheckpointError: if it is missing or has another shape.
        """
        source, begin = self._located(prefix, module, kind, shape)
        if source is not None:
            self.used.add(source)
        paired = self._table.interleaved and module in ("attn_q", "attn_k")
        is_norm = module.endswith("_norm") and kind == "weight"
        return Piece(
            source=source,
            begin=begin,
            rows=shape[0],
            shape=shape,
            heads=shape[0] // self._settings["head_dim"] if paired else 0,
            offset=self._table.norm_offset if is_norm else 0.0,
        )

    def _located(
        self, prefix: str, module: str, kind: str, shape: tuple[int, ...]
    ) -> tuple[str | None, int]:
        """Return the tensor with a module's rows and the first row; no name stands for zeros."""
        for stack, parts in self._stacks.items():
            name = f"{prefix}{stack}.{kind}"
            if module in parts and name in self._header.tensors and self._is_stack(name, stack):
                sizes = [self._rows(part) for part in parts]
                total = (sum(sizes), *shape[1:])
                self._require_shape(name, total)
                return name, sum(sizes[: parts.index(module)])
        name = f"{prefix}{module}.{kind}"
        if name in self._header.tensors:
            self._require_shape(name, shape)
            return name, 0
        if kind == "bias" and module in _OPTIONAL_BIASES and self._never_biased(module):
            return None, 0
        raise missing_tensor(self._header, name)

    def _is_stack(self, name: str, stack: str) -> bool:
        """Return False for a module whose name is that of a stack, if the others exist."""
        prefix, _, kind = name.rpartition(".")
        others = [part for part in self._stacks[stack] if part != stack]
        start = prefix.removesuffix(stack)
        return not all(f"{start}{part}.{kind}" in self._header.tensors for part in others)

    def _rows(self, module: str) -> int:
        return layer_shapes(self._settings)[f"{GGUF_LAYER_MODULES[module]}.weight"][0]

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        stored = self._header.tensors[name].shape
        if stored != shape:
            raise BrokenCheckpointError(
                f"{self._header.name}: tensor {name} has shape {list(stored)}, expected "
                f"{list(shape)}",
                field="model",
            )

    def _never_biased(self, module: str) -> bool:
        ending = f".{module}.bias"
        return not any(name.endswith(ending) for name in self._header.tensors)


# -- values --------------------------------------------------------------------------------------


def assembled(header: GgufHeader, pieces: tuple[Piece, ...]) -> Tensor:
    """Return a tensor of the checkpoint in float32."""
    parts = [_values(header, piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def table_values(header: GgufHeader, name: str) -> list[float]:
    """Return the values of a tensor with one dimension, such as rotary factors."""
    tensor = header.tensors[name]
    values: list[float] = _rows_of(tensor, 0, 1, row=tensor.elements).flatten().tolist()
    return values


def _values(header: GgufHeader, piece: Piece) -> Tensor:
    """Return the rows of a piece in float32, with rotary pairs in halves."""
    if piece.source is None:
        return torch.zeros(piece.shape)
    tensor = header.tensors[piece.source]
    if len(piece.shape) == 1:
        values = _rows_of(tensor, 0, 1, row=tensor.elements)
        values = values[0, piece.begin : piece.begin + piece.rows]
    else:
        values = _rows_of(tensor, piece.begin, piece.rows, row=piece.shape[1])
    values = values - piece.offset
    return _half_split(values, piece.heads) if piece.heads else values


def _rows_of(tensor: GgufTensor, begin: int, rows: int, *, row: int) -> Tensor:
    """Read and dequantise rows of `row` elements each; only their bytes are read.

    Raises:
        UnsupportedArchitectureError: if gguf cannot dequantise the type.
    """
    kind = GGMLQuantizationType(tensor.kind)
    elements = tensor.elements
    stride = row * tensor.bytes // elements
    raw = np.fromfile(
        tensor.file, dtype=np.uint8, count=rows * stride, offset=tensor.offset + begin * stride
    )
    try:
        values = dequantize(_typed(raw.reshape(rows, stride), kind), kind)
    except NotImplementedError as error:
        raise UnsupportedArchitectureError(
            f"{tensor.file.name}: tensors of type {kind.name} are not supported", field="model"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _typed(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return the bytes as floats if the type is one of numpy's."""
    floats = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    floats |= {GGMLQuantizationType.F64: np.float64}
    return raw.view(floats[kind]) if kind in floats else raw


def _half_split(values: Tensor, heads: int) -> Tensor:
    """Return rows of heads with the rotary pairs (j, j+m) instead of (2j, 2j+1)."""
    pairs = values.view(heads, -1, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)
