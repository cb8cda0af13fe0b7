"""Architectures of llama.cpp: what its implementation of each supports, and its families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_QKV = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
_ALL = _QKV | {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Capabilities of one architecture in llama.cpp; the defaults are those of most."""

    name: str
    """Value of `general.architecture`."""
    activations: tuple[str, ...] = ("silu",)
    """Activations of transformers that it computes."""
    layer_norm: bool = False
    interleaved: bool = False
    """True if rows of q and k are stored as interleaved rotary pairs."""
    frequency_factors: bool = False
    """True if a table divides the rotary frequencies, by which any scaling is expressed."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """Rotary types of transformers that settings or tables express."""
    biases: frozenset[str] = frozenset()
    """Canonical modules that may have a bias."""
    heads_fill_hidden_size: bool = False
    """True if heads times head dim must be the hidden size."""
    untied_head: bool = True
    """True if the output head may differ from the embedding."""
    window_period: int | None = None
    """Period in which all layers but the last have a sliding window; None without windows."""
    any_window_pattern: bool = False
    """True if the file may name the layers with a window."""
    no_window: int | None = None
    """Value of the window's setting in files of an architecture whose windows are not supported."""
    own_rotary_in_window: bool = False
    """True if layers with a window have their own base, without scaling."""
    scaled_by_hidden_size: int | None = None
    """Number of layers of the one model whose scale is √(heads / hidden size)."""

    def scale(self, layers: int, settings: Mapping[str, Any], heads: int) -> float:
        """Return the factor on attention scores, by default 1/√head_dim."""
        width: float = settings["head_dim"]
        if layers == self.scaled_by_hidden_size:
            width = settings["hidden_size"] / heads
        return float(width**-0.5)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture(
                name="llama",
                interleaved=True,
                frequency_factors=True,
                rope_types=("default", "linear", "yarn", "llama3", "longrope"),
                biases=_ALL,
            ),
            Architecture(
                name="deci",
                interleaved=True,
                frequency_factors=True,
                rope_types=("default", "linear", "yarn", "llama3", "longrope"),
                biases=_ALL,
            ),
            Architecture(
                name="qwen2",
                rope_types=("default",),
                biases=_QKV,
                heads_fill_hidden_size=True,
            ),
            Architecture(name="qwen3"),
            Architecture(
                name="gemma2",
                activations=_TANH_GELU,
                rope_types=("default", "linear"),
                untied_head=False,
                window_period=2,
                scaled_by_hidden_size=46,
            ),
            Architecture(
                name="gemma3",
                activations=_TANH_GELU,
                rope_types=("default", "linear"),
                window_period=6,
                any_window_pattern=True,
                own_rotary_in_window=True,
                scaled_by_hidden_size=62,
            ),
            Architecture(
                name="phi3",
                rope_types=("default", "longrope"),
                heads_fill_hidden_size=True,
                no_window=0,
            ),
            Architecture(
                name="phi2",
                activations=_TANH_GELU,
                layer_norm=True,
                rope_types=("default",),
                biases=_ALL,
                heads_fill_hidden_size=True,
            ),
        )
    }
)
"""Architectures by name."""

FAMILY_ARCHITECTURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "llama": ("llama",),
        "mistral": ("llama",),
        # As `llama` where a table of frequencies or another head dim is needed.
        "qwen2": ("qwen2", "llama"),
        "qwen3": ("qwen3",),
        "gemma2": ("gemma2",),
        "gemma3_text": ("gemma3",),
        "phi3": ("phi3",),
        "phi": ("phi2",),
    }
)
"""Architectures that express a model type, in order of preference."""
