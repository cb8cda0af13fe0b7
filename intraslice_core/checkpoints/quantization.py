"""Quantisation schemes of checkpoints, read from `quantization_config`; imports no torch.

FP8 and compressed-tensors checkpoints are dequantised (`dequantization.py`); the others are named
and rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from intraslice_core.errors import BrokenCheckpointError, UnsupportedFormatError

SIDE_TENSORS = (
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "q_scale",
    "k_scale",
    "v_scale",
)
"""Last parts of the names of tensors that describe a quantised weight or its activations."""
PACKED = "weight_packed"

_SECTIONS = ("quantization_config", "compression_config")
"""Settings of config.json that describe a quantisation; the second is of early releases."""
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "gptq": "GPTQ",
        "awq": "AWQ",
        "bitsandbytes": "bitsandbytes",
        "compressed-tensors": "compressed-tensors",
        "fp8": "FP8",
        "fbgemm_fp8": "FBGEMM FP8",
        "mxfp4": "MXFP4",
        "torchao": "TorchAO",
        "quanto": "Quanto",
        "hqq": "HQQ",
        "aqlm": "AQLM",
        "eetq": "EETQ",
        "modelopt": "ModelOpt",
    }
)
_FP8_METHODS = ("fp8", "fbgemm_fp8")
_COMPRESSED_FORMATS = (
    "dense",
    "pack-quantized",
    "naive-quantized",
    "int-quantized",
    "float-quantized",
)
"""Formats of compressed-tensors that are read: one weight and its scales for each module."""
_MIXED_FORMAT = "mixed-precision"
_MAX_BITS = 8


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """Storage of the weights of some modules."""

    targets: tuple[str, ...]
    """Module names, patterns after `re:`, or the class `Linear`."""
    bits: int
    block: tuple[int, int] | None
    """Rows and columns that share a scale, where the weight may be no multiple of them."""

    def matches(self, module: str) -> bool:
        """Return True if a target names the module itself or matches it by a pattern."""
        return any(
            target == module or (target.startswith("re:") and re.match(target[3:], module))
            for target in self.targets
        )


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Quantisation of a checkpoint that can be dequantised."""

    description: str
    """Name for people, such as "compressed-tensors (pack-quantized)"."""
    schemes: tuple[WeightScheme, ...]
    activations: bool
    """True if the source model also quantises activations."""

    def scheme(self, module: str) -> WeightScheme:
        """Return the scheme of a module: one that names it, else one for its class."""
        for scheme in self.schemes:
            if scheme.matches(module):
                return scheme
        for scheme in self.schemes:
            if any(not target.startswith("re:") and "." not in target for target in scheme.targets):
                return scheme
        return self.schemes[0]

    @property
    def warning(self) -> str:
        """Return the remark for the report."""
        text = f"the model was dequantised from {self.description}"
        return text + ", and its activations are not quantised" if self.activations else text


def quantization_of(settings: Mapping[str, Any]) -> Quantization | None:
    """Return the quantisation that config.json describes; None if there is none.

    Raises:
        UnsupportedFormatError: naming the scheme, if it cannot be dequantised.
        BrokenCheckpointError: if its settings are malformed.
    """
    section = next((settings[name] for name in _SECTIONS if settings.get(name)), None)
    if section is None:
        return None
    if not isinstance(section, dict):
        raise _malformed("it is not an object")
    method = str(section.get("quant_method") or _implied_method(section))
    if method in _FP8_METHODS:
        return _fp8(method, section)
    if method == "compressed-tensors":
        return _compressed_tensors(section)
    raise UnsupportedFormatError(
        f"the weights are quantised with {_described(method, section)}",
        field="model",
        hint="give the unquantised model; only FP8 and compressed-tensors are dequantised",
    )


def _implied_method(section: Mapping[str, Any]) -> str:
    """Return the method of a section that names none, as early releases wrote it."""
    if "format" in section:
        return "compressed-tensors"
    eight_or_four_bits = section.get("load_in_8bit") or section.get("load_in_4bit")
    return "bitsandbytes" if eight_or_four_bits else ""


def _described(method: str, section: Mapping[str, Any]) -> str:
    """Return the scheme's name with its number of bits where it is given."""
    bits = section.get("bits") or section.get("w_bit")
    if method == "bitsandbytes":
        bits = 4 if section.get("load_in_4bit") or section.get("_load_in_4bit") else 8
    name = _NAMES.get(method, method or "an unnamed scheme")
    algorithm = section.get("quant_algo")  # of ModelOpt
    if isinstance(algorithm, str):
        return f"{name} ({algorithm})"
    return f"{name} ({bits} bits)" if type(bits) is int else name


def _fp8(method: str, section: Mapping[str, Any]) -> Quantization:
    block = section.get("weight_block_size")
    scheme = WeightScheme(targets=("Linear",), bits=8, block=_block(block))
    return Quantization(description=_NAMES[method], schemes=(scheme,), activations=True)


def _compressed_tensors(section: Mapping[str, Any]) -> Quantization:
    sparsity = section.get("sparsity_config") or {}
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise _unsupported(f"sparsity format {sparsity['format']}")
    if section.get("transform_config"):
        raise _unsupported("transform_config (rotated weights)")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _malformed("it has no config_groups")
    overall = section.get("format", "dense")
    schemes = [_group_scheme(group, overall) for group in groups.values()]
    return Quantization(
        description=f"compressed-tensors ({overall})",
        schemes=tuple(scheme for scheme in schemes if scheme is not None) or (_UNQUANTIZED,),
        activations=any(group.get("input_activations") for group in groups.values()),
    )


_UNQUANTIZED = WeightScheme(targets=("Linear",), bits=_MAX_BITS, block=None)


def _group_scheme(group: Any, overall: Any) -> WeightScheme | None:
    """Return the scheme of an entry of `config_groups`; None without quantised weights."""
    if not isinstance(group, dict):
        raise _malformed("an entry of config_groups is not an object")
    own = group.get("format") or overall
    if own not in _COMPRESSED_FORMATS and own != _MIXED_FORMAT:
        raise _unsupported(f"format {own}")
    weights = group.get("weights")
    if weights is None:
        return None
    bits = weights.get("num_bits", _MAX_BITS) if isinstance(weights, dict) else None
    if type(bits) is not int or not 1 <= bits <= _MAX_BITS:
        raise _unsupported(f"weights of num_bits {bits!r}")
    targets = group.get("targets") or ["Linear"]
    return WeightScheme(
        targets=tuple(map(str, targets)), bits=bits, block=_block(weights.get("block_structure"))
    )


def _block(value: Any) -> tuple[int, int] | None:
    """Return the block's rows and columns, given as a list or as "128x128"."""
    if value is None:
        return None
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        rows, columns = (int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise _malformed(f"the block size {value!r} is not two numbers") from error
    if min(rows, columns) < 1:
        raise _malformed(f"the block size {value!r} is not positive")
    return rows, columns


def _unsupported(what: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"the weights are quantised with compressed-tensors: {what} is not supported",
        field="model",
        hint=f"give the unquantised model, or one in format {', '.join(_COMPRESSED_FORMATS[1:])}",
    )


def _malformed(problem: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"config.json: quantization_config: {problem}", field="model")


def unpacked_sizes(
    quantization: Quantization, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, int]]:
    """Yield name and number of elements of every dequantised tensor.

    Args:
        quantization: of the checkpoint.
        shapes: of the stored tensors, by name.

    Elements of packed weights are counted up to the padding of a row's last word.
    """
    for name, shape in shapes.items():
        module, _, last = name.rpartition(".")
        elements = 1
        for size in shape:
            elements *= size
        if last == PACKED:
            yield f"{module}.weight", elements * 32 // quantization.scheme(module).bits
        elif last not in SIDE_TENSORS:
            yield name, elements
