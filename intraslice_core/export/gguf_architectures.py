"""Architectures of llama.cpp: what its implementation of each supports, and its families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gguf import Keys

_QKV = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
_ALL = _QKV | {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
_ATTENTION_SCALE = {"attention_scale": Keys.Attention.SCALE}
_LOGIT_SCALE = {"logit_scale": Keys.LLM.LOGIT_SCALE}
_RESIDUAL_SCALES = {
    "embedding_scale": Keys.LLM.EMBEDDING_SCALE,
    "residual_scale": Keys.LLM.RESIDUAL_SCALE,
}


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
    needs_biases: bool = False
    """True if all of them must have one."""
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
    rotary_period: int | None = None
    """Period in which all layers but the last have rotary embedding; None if all layers have it."""
    multipliers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Settings in the file by the canonical factors that they express."""
    divides_logits: bool = False
    """True if the file has the inverse of the factor on logits."""
    names_parallel_layers: bool = False
    """True if the file says whether attention and MLP are parallel."""
    fused_per_head: bool = False
    """True if the family's fused rows of q, k and v alternate by head, unlike the file's."""
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
            Architecture(name="seed_oss", biases=_QKV),
            Architecture(name="olmo2", heads_fill_hidden_size=True),
            Architecture(name="smollm3", interleaved=True, rotary_period=4),
            Architecture(
                name="granite",
                interleaved=True,
                biases=_ALL,
                multipliers=_ATTENTION_SCALE | _LOGIT_SCALE | _RESIDUAL_SCALES,
                divides_logits=True,
            ),
            Architecture(
                name="exaone4",
                frequency_factors=True,
                rope_types=("default", "linear", "llama3"),
                heads_fill_hidden_size=True,
            ),
            Architecture(name="glm4", rope_types=("default",), biases=_QKV),
            Architecture(
                name="command-r",
                layer_norm=True,
                rope_types=("default",),
                heads_fill_hidden_size=True,
                untied_head=False,
                multipliers=_LOGIT_SCALE,
            ),
            Architecture(
                name="cohere2",
                layer_norm=True,
                rope_types=("default",),
                heads_fill_hidden_size=True,
                untied_head=False,
                window_period=4,
                rotary_period=4,
                multipliers=_LOGIT_SCALE,
            ),
            Architecture(
                name="starcoder2",
                activations=_TANH_GELU,
                layer_norm=True,
                rope_types=("default",),
                biases=_ALL,
                needs_biases=True,
                heads_fill_hidden_size=True,
            ),
            Architecture(
                name="stablelm",
                layer_norm=True,
                rope_types=("default",),
                biases=_QKV,
                heads_fill_hidden_size=True,
                names_parallel_layers=True,
            ),
            Architecture(
                name="nemotron",
                activations=("relu2",),
                layer_norm=True,
                rope_types=("default",),
                biases=_ALL,
                heads_fill_hidden_size=True,
            ),
            Architecture(
                name="gptneox",
                # llama.cpp approximates GELU by a hyperbolic tangent; it differs by 5e-4 at most.
                activations=("gelu", *_TANH_GELU),
                layer_norm=True,
                rope_types=("default",),
                biases=_ALL,
                needs_biases=True,
                heads_fill_hidden_size=True,
                names_parallel_layers=True,
                fused_per_head=True,
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
        "cohere": ("command-r",),
        "cohere2": ("cohere2",),
        "exaone4": ("exaone4",),
        "glm4": ("glm4",),
        "gpt_neox": ("gptneox",),
        "granite": ("granite",),
        "nemotron": ("nemotron",),
        "olmo2": ("olmo2",),
        "seed_oss": ("seed_oss",),
        "smollm3": ("smollm3",),
        "stablelm": ("stablelm",),
        "starcoder2": ("starcoder2",),
    }
)
"""Architectures that express a model type, in order of preference."""
