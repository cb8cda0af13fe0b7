"""Dequantisation of FP8 and compressed-tensors checkpoints, one tensor at a time.

Sources: transformers' `Fp8Dequantize` for FP8, and the package compressed-tensors
(`PackedQuantizationCompressor` and `NaiveQuantizationCompressor`) for the formats pack-quantized,
naive-quantized, int-quantized and float-quantized. Every weight becomes
(stored value - zero point) * scale, computed in float32 and rounded once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from intraslice_core.checkpoints.quantization import (
    PACKED,
    SIDE_TENSORS,
    Quantization,
    WeightScheme,
    unpacked_sizes,
)
from intraslice_core.checkpoints.reader import StoredTensors, load_config
from intraslice_core.checkpoints.weight_files import CONVERSION_FILE, weight_files
from intraslice_core.checkpoints.writer import CheckpointWriter, ensure_disk_space
from intraslice_core.device import COMPUTE_DTYPES
from intraslice_core.device_memory import lacks_memory
from intraslice_core.errors import BrokenCheckpointError

_QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("weight_scale_inv", "weight_scale")
_WORD_BITS = 32
_E8M0_BIAS = 127
_DOCUMENTS = ("README.md",)
"""Files beside the weights that the writer does not copy, and that name the licence."""


def dequantize_checkpoint(place: Path, out: Path, quantization: Quantization) -> Path:
    """Write a quantised checkpoint as one of plain floating-point weights.

    Args:
        place: directory of the quantised checkpoint.
        out: the output directory; an earlier conversion in it is reused.
        quantization: its quantisation.

    Returns:
        `out`.

    Raises:
        BrokenCheckpointError: if a file is invalid or a scale is missing or of a wrong shape.
        InsufficientDiskError: if there is no room for the result.
    """
    if (out / "config.json").is_file():  # the writer renames last, so an existing one is complete
        return out
    config = load_config(place)
    for section in ("quantization_config", "compression_config"):
        if hasattr(config, section):
            delattr(config, section)
    own_dtypes = (dtype for dtype in COMPUTE_DTYPES.values() if dtype == config.dtype)
    dtype = next(own_dtypes, torch.bfloat16)
    with StoredTensors(place) as stored, CheckpointWriter(out, dtype=dtype) as writer:
        sizes = unpacked_sizes(quantization, {name: stored.shape(name) for name in stored.names})
        ensure_disk_space(out, sum(size for _, size in sizes) * dtype.itemsize)
        for name in stored.names:
            module, _, last = name.rpartition(".")
            if last == PACKED or last not in SIDE_TENSORS:
                target = f"{module}.weight" if last == PACKED else name
                writer.add({target: _dequantized(stored, name, quantization)})
        written = writer.finish(config, place)
    remarks = (*weight_files(place).warnings, quantization.warning)
    (written / CONVERSION_FILE).write_text(json.dumps({"warnings": remarks}), encoding="utf-8")
    for document in _DOCUMENTS:
        if (place / document).is_file():
            shutil.copyfile(place / document, written / document)
    return written


def _dequantized(stored: StoredTensors, name: str, quantization: Quantization) -> Tensor:
    """Return the floating-point values of a stored tensor."""
    module, _, last = name.rpartition(".")
    tensor = stored.tensor(name)
    if last != PACKED and not (last == "weight" and tensor.dtype in _QUANTIZED):
        return tensor
    side = {
        part: stored.tensor(f"{module}.{part}")
        for part in SIDE_TENSORS
        if stored.has(f"{module}.{part}")
    }
    scheme = quantization.scheme(module)
    try:
        if last == PACKED:
            return unpacked_weight(tensor, side, scheme)
        return scaled_weight(tensor, side, scheme)
    except (IndexError, ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise BrokenCheckpointError(
            f"tensor {name} cannot be dequantised: {error}", field="model"
        ) from error


def scaled_weight(weight: Tensor, side: Mapping[str, Tensor], scheme: WeightScheme) -> Tensor:
    """Return (weight - zero point) * scale, (rows, columns), in float32.

    Args:
        weight: stored values, int8 or float8, (rows, columns).
        side: tensors of the same module by the last part of their names: `weight_scale` or
            `weight_scale_inv` with one value per tensor, row, group of columns or block, and
            optionally `weight_zero_point` and, for groups in another order, `weight_g_idx`.
        scheme: of the module.

    Raises:
        ValueError: if there is no scale or its shape does not fit the weight.
    """
    scale = next((side[name] for name in _SCALES if name in side), None)
    if scale is None:
        raise ValueError("it has no weight_scale")
    groups = side.get("weight_g_idx")
    values = weight.float()
    zero_point = side.get("weight_zero_point")
    if zero_point is not None:
        values = values - _spread(zero_point.float(), weight.shape, scheme, groups)
    return values * _spread(_scale_values(scale), weight.shape, scheme, groups)


def _scale_values(scale: Tensor) -> Tensor:
    """Return scales in float32; bytes are exponents of two (E8M0, used by MX formats)."""
    if scale.dtype == torch.uint8:
        return (scale.float() - _E8M0_BIAS).exp2()
    return scale.float()


def _spread(grid: Tensor, shape: torch.Size, scheme: WeightScheme, groups: Tensor | None) -> Tensor:
    """Return the grid of scales or zero points with one value per element or broadcastable."""
    if grid.numel() == 1:
        return grid.reshape(1, 1)
    if grid.dim() == 1:
        grid = grid[:, None]
    if groups is not None and grid.shape[1] > 1 and (groups >= 0).all():
        return grid[:, groups.long()]
    for dimension, size in enumerate(shape):
        block = scheme.block[dimension] if scheme.block else None
        grid = _repeated(grid, dimension, size, block)
    return grid


def _repeated(grid: Tensor, dimension: int, size: int, block: int | None) -> Tensor:
    """Repeat each entry along a dimension until it has `size` entries; one entry broadcasts."""
    entries = grid.shape[dimension]
    if entries in (1, size):
        return grid
    if block is None or -(-size // block) != entries:
        if size % entries:
            raise ValueError(f"{entries} scales do not divide a dimension of {size}")
        block = size // entries
    return grid.repeat_interleave(block, dimension).narrow(dimension, 0, size)


def unpacked_weight(packed: Tensor, side: Mapping[str, Tensor], scheme: WeightScheme) -> Tensor:
    """Return the values of a weight of 1 to 8 bits packed into words, (rows, columns), float32.

    Args:
        packed: words, int32, (rows, ⌈columns · bits / 32⌉).
        side: as in `scaled_weight`, with `weight_shape`; zero points are packed along the rows.
        scheme: of the module.

    Raises:
        ValueError: if `weight_shape` is missing or does not fit the words.
    """
    if "weight_shape" not in side:
        raise ValueError("it has no weight_shape")
    rows, columns = (int(size) for size in side["weight_shape"].flatten())
    weight = unpack_words(packed, scheme.bits, columns)
    if weight.shape != (rows, columns):
        raise ValueError(f"weight_shape [{rows}, {columns}] contradicts {list(packed.shape)} words")
    side = dict(side)
    zero_point = side.get("weight_zero_point")
    if zero_point is not None and zero_point.dtype == torch.int32:
        side["weight_zero_point"] = unpack_words(zero_point.T, scheme.bits, rows).T
    return scaled_weight(weight, side, scheme)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` integers of each row of words, (rows, count), int8.

    Element i starts at bit i · bits of its row, may cross into the next word, and is stored with an
    offset of 2^(bits - 1).

    Raises:
        ValueError: if the words hold fewer integers.
    """
    rows, width = words.shape
    if count < 1 or width != -(-count * bits // _WORD_BITS):
        raise ValueError(f"{width} words do not hold {count} integers of {bits} bits")
    unsigned = words.contiguous().view(torch.uint8).view(rows, -1)
    if bits == 8:
        fields = unsigned.short()
    elif bits == 4:
        fields = torch.stack((unsigned & 15, unsigned >> 4), -1).view(rows, -1).short()
    else:
        # Any other width may cross bytes: read two bytes from the one where the element starts.
        starts = torch.arange(count) * bits
        padded = torch.nn.functional.pad(unsigned, (0, 1)).short()
        first = starts // 8
        both = padded[:, first] | padded[:, first + 1] << 8
        fields = both >> (starts % 8).short() & (1 << bits) - 1
    return (fields[:, :count] - (1 << bits - 1)).to(torch.int8)
