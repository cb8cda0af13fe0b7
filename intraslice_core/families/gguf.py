"""Tables of the families' GGUF files: settings in config.json by llama.cpp's metadata.

llama.cpp names modules alike in all architectures, so the names of tensors follow from the
canonical names. A family adds a `GgufTable`: its architecture in llama.cpp and a function that
reads the settings which not all families share. Every metadata key must be read by such a function;
`intraslice_core/checkpoints/gguf/description.py` rejects the others. The key names are llama.cpp's
(`gguf.constants.Keys`), without the prefix of the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError

GGUF_OUTER_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
)
"""Canonical modules outside the layers by llama.cpp's names."""

GGUF_LAYER_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "post_attention_norm": "attention_output_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "mlp_output_norm",
    }
)
"""Canonical modules of a decoder layer by llama.cpp's names."""

GGUF_FUSED_QKV = "attn_qkv"
"""Module with the stacked rows of q, k and v; converters may fuse them in every architecture."""

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
ROPE_TABLES = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
"""Tensors with divisors of the rotary frequencies, one per pair."""

DEFAULT_THETA = 10_000.0
LAYER_NORM_EPS = "attention.layer_norm_epsilon"
RMS_NORM_EPS = "attention.layer_norm_rms_epsilon"

_QKV_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", f"{GGUF_FUSED_QKV}.bias")
_OUTPUT_BIAS = "attn_output.bias"
_MLP_BIASES = ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
_MISSING = object()
_MAX_LAYERS = 10_000
_MAX_HEAD_SIZE = 65_536
"""Largest plausible sizes: lists of settings have one entry per layer or rotary pair."""


class GgufSettings:
    """Metadata of one GGUF model; records which keys were read.

    Args:
        name: file name for error messages.
        architecture: prefix of the model's keys.
        values: metadata by full key; arrays of numbers are tuples.
        shapes: shapes of the tensors by name, in torch's order.
        read_table: returns the values of a tensor with one dimension.
        layers_differ: True if the sizes of layers may differ; `integer` returns the largest.
    """

    def __init__(
        self,
        name: str,
        architecture: str,
        values: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        read_table: Callable[[str], list[float]],
        *,
        layers_differ: bool = False,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.shapes = shapes
        self.read_table = read_table
        self._layers_differ = layers_differ
        self._values = values
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of this architecture, and record that it was read."""
        full = f"{self.architecture}.{key}"
        self._read.add(full)
        return self._values.get(full, default)

    def skip(self, *keys: str) -> None:
        """Record keys as read whose values change nothing."""
        self._read.update(f"{self.architecture}.{key}" for key in keys)

    def unread(self) -> dict[str, Any]:
        """Return the metadata of this architecture that was not read."""
        prefix = f"{self.architecture}."
        return {
            key: value
            for key, value in self._values.items()
            if key.startswith(prefix) and key not in self._read
        }

    def number(self, key: str, default: Any = _MISSING) -> Any:
        """Return a finite number.

        Raises:
            BrokenCheckpointError: if the value is missing without a default, or not a number.
        """
        value = self.get(key, default)
        if value is default and default is not _MISSING:
            return value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.broken(key, "missing" if value is _MISSING else repr(value), "a number")
        return value

    def integer(self, key: str, default: Any = _MISSING) -> Any:
        """Return an integer; one number for all layers may be stored as an array.

        Raises:
            BrokenCheckpointError: if the value is missing without a default, or not an integer.
            UnsupportedArchitectureError: if layers differ.
        """
        value = self.get(key, default)
        if isinstance(value, tuple) and value:
            if len(set(value)) > 1 and not self._layers_differ:
                raise self.unsupported(key, f"{value[0]} … {value[-1]} (layers differ)")
            value = max(value)
        if value is default and default is not _MISSING:
            return value
        if type(value) is not int:
            raise self.broken(key, "missing" if value is _MISSING else repr(value), "an integer")
        return value

    def per_layer(self, key: str) -> tuple[int, ...]:
        """Return the integer of every layer; one number stands for all.

        Raises:
            BrokenCheckpointError: if the value is neither a number nor one for each layer.
        """
        layers: int = self.integer("block_count")
        value = self.get(key)
        if type(value) is int:
            return (value,) * layers
        valid = isinstance(value, tuple) and all(type(size) is int for size in value)
        if not valid or len(value) != layers:
            shown = str(value)[:64] if isinstance(value, tuple) else repr(value)[:64]
            raise self.broken(key, shown, f"{layers} integers")
        sizes: tuple[int, ...] = value
        return sizes

    def has(self, *endings: str) -> bool:
        """Return True if the name of any tensor has one of the endings."""
        return any(name.endswith(endings) for name in self.shapes)

    def broken(self, key: str, value: str, expected: str) -> BrokenCheckpointError:
        """Return the error for an invalid value."""
        return BrokenCheckpointError(
            f"{self.name}: {self.architecture}.{key} is {value}, expected {expected}",
            field="model",
        )

    def unsupported(self, key: str, value: Any) -> UnsupportedArchitectureError:
        """Return the error for a valid value that cannot be converted."""
        return UnsupportedArchitectureError(
            f"{self.name}: {self.architecture}.{key} = {value} is not supported",
            field="model",
            hint="give the model as safetensors",
        )


@dataclass(frozen=True, kw_only=True)
class GgufTable:
    """Reading of one family's GGUF files."""

    architecture: str
    """`general.architecture` of llama.cpp."""
    settings: Callable[[GgufSettings], dict[str, Any]]
    """Function that returns the settings in config.json beyond `common_settings`."""
    norm_eps: tuple[str, str] = (RMS_NORM_EPS, "rms_norm_eps")
    """Key of the norms' epsilon and its name in config.json."""
    interleaved: bool = False
    """True if the converter interleaves the rotary pairs of q and k (rows 0, m, 1, m+1, …)."""
    norm_offset: float = 0.0
    """Number that the converter adds to the weights of norms."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """llama.cpp's modules that stack the rows of several, in their order, by name."""
    layers_differ: bool = False
    """True if layers may have different numbers of heads and widths."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """llama.cpp's names of a layer's modules by canonical name, where they are not the usual."""


def common_settings(gguf: GgufSettings, table: GgufTable) -> dict[str, Any]:
    """Return the settings in config.json that all families share.

    Raises:
        BrokenCheckpointError: if a size is missing or invalid.
        UnsupportedArchitectureError: if a size differs between layers or between keys and values.
    """
    hidden, heads = gguf.integer("embedding_length"), gguf.integer("attention.head_count")
    if heads < 1:
        raise gguf.broken("attention.head_count", str(heads), "a positive number")
    layers, head_dim = gguf.integer("block_count"), head_size(gguf)
    if not 1 <= layers <= _MAX_LAYERS:
        raise gguf.broken("block_count", str(layers), f"1 to {_MAX_LAYERS}")
    if gguf.integer("attention.value_length", hidden // heads) != head_dim:
        raise gguf.unsupported("attention.value_length", f"not key_length {head_dim}")
    embedding = gguf.shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise BrokenCheckpointError(f"{gguf.name}: token_embd.weight is missing", field="model")
    gguf.skip("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
    key, eps = table.norm_eps
    return {
        "vocab_size": embedding[0],
        "hidden_size": hidden,
        "intermediate_size": gguf.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": gguf.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in gguf.shapes,
        eps: gguf.number(key),
    }


def has_attention_bias(gguf: GgufSettings) -> bool:
    """Return True if any projection of the attention has a bias."""
    return has_qkv_bias(gguf) or has_output_bias(gguf)


def has_qkv_bias(gguf: GgufSettings) -> bool:
    """Return True if q, k or v has a bias."""
    return gguf.has(*_QKV_BIASES)


def has_output_bias(gguf: GgufSettings) -> bool:
    """Return True if the output projection of the attention has a bias."""
    return gguf.has(_OUTPUT_BIAS)


def has_mlp_bias(gguf: GgufSettings) -> bool:
    """Return True if any projection of the MLP has a bias."""
    return gguf.has(*_MLP_BIASES)


def head_size(gguf: GgufSettings) -> int:
    """Return the number of dimensions of a head."""
    hidden, heads = gguf.integer("embedding_length"), gguf.integer("attention.head_count")
    size: int = gguf.integer("attention.key_length", hidden // heads)
    if not 1 <= size <= _MAX_HEAD_SIZE:
        raise gguf.broken("attention.key_length", str(size), f"1 to {_MAX_HEAD_SIZE}")
    return size


# -- rotary embedding ----------------------------------------------------------------------------


def rope_parameters(gguf: GgufSettings) -> dict[str, Any]:
    """Return transformers' rotary parameters: base, scaling and partial rotation.

    llama.cpp scales positions by `1 / factor` for the type `linear`, which is the default, and for
    `yarn` and `longrope`; it divides frequencies by the tables; and it multiplies cosine and sine
    by the attention factors (`llama-context.cpp`, `ggml_rope_cache_init`). What transformers has
    no name for is expressed exactly as `longrope` with tables.

    Raises:
        UnsupportedArchitectureError: if the scaling cannot be expressed.
    """
    kind = gguf.get("rope.scaling.type", "linear")
    old_factor = gguf.number("rope.scale_linear", 0.0)
    factor = float(gguf.number("rope.scaling.factor", old_factor)) or 1.0
    attention_factor = float(gguf.number("rope.scaling.attn_factor", 1.0))
    context = gguf.integer("context_length")
    original = gguf.integer("rope.scaling.original_context_length", context)
    common = {"rope_theta": float(gguf.number("rope.freq_base", DEFAULT_THETA)), **_partial(gguf)}
    tables = [name for name in ROPE_TABLES if name in gguf.shapes]
    if kind == "yarn":
        if tables:
            raise gguf.unsupported("rope.scaling.type", f"yarn with tensor {tables[0]}")
        return common | _yarn(gguf, factor, original, attention_factor)
    if kind not in ("none", "linear", "longrope"):
        raise gguf.unsupported("rope.scaling.type", repr(kind))
    factor = 1.0 if kind == "none" else factor
    if tables or attention_factor != 1.0:
        return common | _tables(gguf, factor, original, attention_factor)
    if kind == "longrope":
        raise BrokenCheckpointError(
            f"{gguf.name}: rope.scaling.type is longrope, tensor {LONG_FACTORS} is missing",
            field="model",
        )
    return common | (
        {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    )


def partial_rope_parameters(gguf: GgufSettings) -> dict[str, Any]:
    """Return the rotary parameters with the rotating part, even if it is the whole head.

    Families with partial rotation assume a smaller part if the setting is missing.
    """
    return {"partial_rotary_factor": 1.0} | rope_parameters(gguf)


def _partial(gguf: GgufSettings) -> dict[str, float]:
    """Return the rotating part of a head, if it is not the whole head."""
    head_dim = head_size(gguf)
    rotating = gguf.integer("rope.dimension_count", head_dim)
    if not 0 < rotating <= head_dim:
        raise gguf.unsupported("rope.dimension_count", rotating)
    if rotating == head_dim:
        return {}
    share = rotating / head_dim
    while int(head_dim * share) < rotating:  # transformers rounds down
        share = math.nextafter(share, 1.0)
    return {"partial_rotary_factor": share}


def _yarn(
    gguf: GgufSettings, factor: float, original: int, attention_factor: float
) -> dict[str, Any]:
    """Return YaRN's parameters (arXiv 2309.00071).

    Some architectures of llama.cpp ignore the keys `yarn_*` and use YaRN's defaults; they are read
    here for all, since they are settings of the model.
    """
    if gguf.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise gguf.unsupported(
            "rope.scaling.yarn_ext_factor", gguf.get("rope.scaling.yarn_ext_factor")
        )
    log_multiplier = gguf.number("rope.scaling.yarn_log_multiplier", 0.0)
    default = _magnitude(factor, 1.0)
    stated = gguf.number("rope.scaling.yarn_attn_factor", None)
    if stated is None:
        stated = default / _magnitude(factor, log_multiplier) if log_multiplier else default
    parameters = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": float(gguf.number("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(gguf.number("rope.scaling.yarn_beta_slow", 1.0)),
    }
    total = stated * attention_factor
    return parameters if total == default else parameters | {"attention_factor": float(total)}


def _magnitude(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0


def _tables(
    gguf: GgufSettings, factor: float, original: int, attention_factor: float
) -> dict[str, Any]:
    """Return `longrope` parameters with the file's tables; positions count in the factors."""
    pairs = gguf.integer("rope.dimension_count", head_size(gguf)) // 2
    names = [name for name in ROPE_TABLES if name in gguf.shapes]
    for name in names:
        if gguf.shapes[name] != (pairs,):
            raise BrokenCheckpointError(
                f"{gguf.name}: tensor {name} has shape {list(gguf.shapes[name])}, expected "
                f"[{pairs}]",
                field="model",
            )
    tables = {name: gguf.read_table(name) for name in names}
    if ROPE_FACTORS in tables:
        short = long = tables[ROPE_FACTORS]
    elif tables:
        missing = {LONG_FACTORS, SHORT_FACTORS} - tables.keys()
        if missing:
            raise BrokenCheckpointError(
                f"{gguf.name}: tensor {missing.pop()} is missing", field="model"
            )
        short, long = tables[SHORT_FACTORS], tables[LONG_FACTORS]
    else:
        short = long = [1.0] * pairs
    return {
        "rope_type": "longrope",
        "short_factor": _scaled(short, factor),
        "long_factor": _scaled(long, factor),
        "factor": 1.0,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": original,
    }


def _scaled(table: Sequence[float], factor: float) -> list[float]:
    return [float(value * factor) for value in table]


# -- sliding windows -----------------------------------------------------------------------------


def window_layers(gguf: GgufSettings, period: int) -> list[str]:
    """Return the layer types of a model in which every `period`-th layer has full attention.

    `attention.sliding_window_pattern` overrides the period, or says True for each sliding layer.
    """
    layers = gguf.integer("block_count")
    pattern = gguf.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, tuple) and len(pattern) == layers:
        sliding = [bool(entry) for entry in pattern]
    elif type(pattern) is int and pattern >= 0:
        sliding = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    else:
        raise gguf.unsupported("attention.sliding_window_pattern", pattern)
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]
