"""Layout of GGUF files: architecture, sizes, settings and tables as llama.cpp expects them.

`family_layout` describes a model of a family's own class, `deci_layout` one of target `adaptive`.
Both raise if llama.cpp's implementation of the architecture computes something else than the model.
Each statement about llama.cpp in `ARCHITECTURES` was verified by loading tiny random models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from gguf import GGUFWriter, Keys, RopeScalingType
from transformers import PreTrainedConfig
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from intraslice_core.errors import ConfigurationError
from intraslice_core.export.gguf_architectures import (
    ARCHITECTURES,
    FAMILY_ARCHITECTURES,
    Architecture,
)
from intraslice_core.families.adapter import FamilyAdapter
from intraslice_core.families.canonical import (
    CanonicalSettings,
    layer_shapes,
    rope_of,
    rotary_embedding,
    rotating_dims,
)
from intraslice_core.plan import LayerPlan

FREQUENCY_FACTORS = "rope_freqs.weight"
PLUS_ONE = ("rms_plus_one", "layer_plus_one")
"""Types of norms whose weights are stored less 1."""
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True, kw_only=True)
class GgufRotary:
    """Rotary embedding of a GGUF file."""

    dimensions: int
    """Rotating dimensions of a head."""
    theta: float
    theta_in_window: float | None = None
    """Base of the layers with a sliding window, where it may differ."""
    scaling: RopeScalingType | None = None
    scaling_factor: float = 1.0
    original_context_length: int | None = None
    attention_factor: float | None = None
    """Factor on the embedding of queries and keys; None if the scaling type determines it."""
    beta: tuple[float, float] | None = None
    """Fast and slow rotations between which YaRN interpolates; None for llama.cpp's defaults."""
    tables: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Divisors of the frequencies `theta^(-j/m)`, (m,), by the name of their tensor."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the settings; tables are tensors."""
        writer.add_rope_dimension_count(self.dimensions)
        writer.add_rope_freq_base(self.theta)
        if self.theta_in_window is not None:
            writer.add_rope_freq_base_swa(self.theta_in_window)
        if self.scaling is not None:
            writer.add_rope_scaling_type(self.scaling)
            writer.add_rope_scaling_factor(self.scaling_factor)
        if self.original_context_length is not None:
            writer.add_rope_scaling_orig_ctx_len(self.original_context_length)
        if self.attention_factor is not None:
            writer.add_rope_scaling_attn_factors(self.attention_factor)
        if self.beta is not None:
            writer.add_rope_scaling_yarn_beta_fast(self.beta[0])
            writer.add_rope_scaling_yarn_beta_slow(self.beta[1])


@dataclass(frozen=True, kw_only=True)
class GgufLayout:
    """Architecture, shapes and settings of a GGUF file; sequences have one entry per layer."""

    architecture: Architecture
    query_heads: tuple[int, ...]
    """Number of query heads, 0 without attention."""
    key_value_heads: tuple[int, ...]
    widths: tuple[int, ...]
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    norm_shift: float
    """Number added to the weights of norms, which the family stores less 1."""
    rotary: GgufRotary
    window: int | None
    """Length of sliding windows; None without."""
    window_layers: tuple[bool, ...] | None
    """Layers with a sliding window; None for the architecture's own pattern."""
    soft_caps: tuple[float | None, float | None]
    """Soft caps of attention scores and logits."""
    query_factor: float
    """Factor on the queries, for differences of the attention's scale."""
    query_module: str
    """Module whose weights and bias get that factor, as the end of its name."""
    multipliers: Mapping[str, float]
    """Further factors by their keys in the file."""
    parallel: bool
    """True if attention and MLP read the same hidden states."""

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
        if self.architecture.layer_norm:
            writer.add_layer_norm_eps(self.norm_eps)
        else:
            writer.add_layer_norm_rms_eps(self.norm_eps)
        self.rotary.add_to(writer)
        if self.window is not None:
            writer.add_sliding_window(self.window)
        if self.window_layers is not None:
            writer.add_sliding_window_pattern(self.window_layers)
        for key, value in self.multipliers.items():
            writer.add_float32(key.format(arch=self.architecture.name), value)
        if self.architecture.names_parallel_layers:
            writer.add_parallel_residual(self.parallel)
        attention_cap, logit_cap = self.soft_caps
        if attention_cap is not None:
            writer.add_attn_logit_softcapping(attention_cap)
        if logit_cap is not None:
            writer.add_final_logit_softcapping(logit_cap)


def _scalar_or_list(sizes: tuple[int, ...]) -> int | Sequence[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def family_layout(family: FamilyAdapter, config: PreTrainedConfig) -> GgufLayout:
    """Return the layout of a model of a family's own class, in the first architecture that fits.

    Args:
        family: family of the model.
        config: configuration of the model, whose layers have one shape.

    Raises:
        ConfigurationError: naming the setting that llama.cpp does not support.
    """
    canonical = family.canonical_settings(config)
    shapes = family.geometry(config).dense_plan().layers
    names = FAMILY_ARCHITECTURES.get(family.model_type, ())
    problem = f"{family.model_type} models"
    for name in names:
        layout = _layout(ARCHITECTURES[name], canonical, shapes)
        if isinstance(layout, GgufLayout):
            return layout
        problem = layout
    raise _unsupported(problem)


def deci_layout(canonical: CanonicalSettings, shapes: Sequence[LayerPlan]) -> GgufLayout:
    """Return the layout of a `deci` model: different MLP widths, dense attention or none.

    Raises:
        ConfigurationError: naming the setting that llama.cpp does not support.
    """
    layout = _layout(ARCHITECTURES["deci"], canonical, shapes)
    if isinstance(layout, GgufLayout):
        return layout
    raise _unsupported(layout)


def _unsupported(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"the GGUF export does not support {problem}",
        field="compression.exports",
        hint="remove the gguf exports",
    )


def _layout(
    architecture: Architecture, canonical: CanonicalSettings, shapes: Sequence[LayerPlan]
) -> GgufLayout | str:
    """Return the layout in one architecture, or the setting that it does not support."""
    for problem in (
        *_problems(architecture, canonical),
        *_rotary_problems(architecture, canonical),
    ):
        return problem
    rotary, rotary_factor = _rotary(architecture, canonical)
    window, window_layers = _window(architecture, canonical)
    heads = max(shape.num_attention_heads for shape in shapes)
    scale: float = architecture.scale(canonical["num_hidden_layers"], canonical, heads)
    if "attention_scale" in architecture.multipliers:
        scale = canonical["attention_scale"]
    return GgufLayout(
        architecture=architecture,
        query_heads=tuple(shape.num_attention_heads for shape in shapes),
        key_value_heads=tuple(shape.num_key_value_heads for shape in shapes),
        widths=tuple(shape.intermediate_size for shape in shapes),
        head_dim=canonical["head_dim"],
        hidden_size=canonical["hidden_size"],
        vocab_size=canonical["vocab_size"],
        context_length=canonical["max_position_embeddings"],
        norm_eps=float(canonical["norm_eps"]),
        norm_shift=float(canonical["norm_type"] in PLUS_ONE),
        rotary=rotary,
        window=window,
        window_layers=window_layers,
        soft_caps=(canonical["attn_logit_softcapping"], canonical["final_logit_softcapping"]),
        query_factor=canonical["attention_scale"] / scale * rotary_factor,
        query_module="self_attn.q_norm" if canonical["qk_norm"] else "self_attn.q_proj",
        multipliers=_multipliers(architecture, canonical),
        parallel=canonical["parallel_block"],
    )


def _multipliers(architecture: Architecture, canonical: CanonicalSettings) -> dict[str, float]:
    factors = {key: float(canonical[name]) for name, key in architecture.multipliers.items()}
    if architecture.divides_logits:
        factors[Keys.LLM.LOGIT_SCALE] = 1.0 / factors[Keys.LLM.LOGIT_SCALE]
    return factors


def _problems(architecture: Architecture, canonical: CanonicalSettings) -> Iterator[str]:
    """Yield the settings, besides rotary embedding, that the architecture does not support."""
    heads, hidden = canonical["num_attention_heads"], canonical["hidden_size"]
    if architecture.heads_fill_hidden_size and heads * canonical["head_dim"] != hidden:
        yield f"{heads} heads of {canonical['head_dim']} with hidden_size {hidden}"
    if canonical["hidden_act"] not in architecture.activations:
        yield f"hidden_act {canonical['hidden_act']!r} in architecture {architecture.name}"
    if not architecture.untied_head and not canonical["tie_word_embeddings"]:
        yield f"an untied output head in architecture {architecture.name}"
    biased = {
        name.removesuffix(".bias")
        for name in layer_shapes(canonical)
        if name.endswith(".bias") and not name.endswith("norm.bias")
    }
    for module in sorted(biased - architecture.biases):
        yield f"a bias of {module} in architecture {architecture.name}"
    if architecture.needs_biases and not {"self_attn.q_proj", "mlp.up_proj"} <= biased:
        yield f"projections without biases in architecture {architecture.name}"
    yield from _window_problems(architecture, canonical)


def _window_problems(architecture: Architecture, canonical: CanonicalSettings) -> Iterator[str]:
    windows = _windows(canonical)
    if any(windows) and architecture.window_period is None:
        yield f"sliding-window attention in architecture {architecture.name}"
    elif architecture.window_period is not None and not architecture.any_window_pattern:
        period = architecture.window_period
        slides = [name == "sliding_attention" for name in canonical["layer_types"]]
        if any(windows) and slides != _pattern(period, len(slides)):
            yield f"layer_types {canonical['layer_types']} in architecture {architecture.name}"


def _windows(canonical: CanonicalSettings) -> list[bool]:
    """Return for each layer whether a sliding window is shorter than the context."""
    window = canonical["sliding_window"]
    effective = window is not None and window < canonical["max_position_embeddings"]
    return [effective and name == "sliding_attention" for name in canonical["layer_types"]]


def _pattern(period: int, layers: int) -> list[bool]:
    """Return llama.cpp's layers with a window: all but the last of each `period`."""
    return [layer % period < period - 1 for layer in range(layers)]


def _window(
    architecture: Architecture, canonical: CanonicalSettings
) -> tuple[int | None, tuple[bool, ...] | None]:
    """Return the window and the layers that have it, where the architecture has windows."""
    if architecture.window_period is None:
        return architecture.no_window, None
    window = canonical["sliding_window"] or canonical["max_position_embeddings"]
    slides = [name == "sliding_attention" for name in canonical["layer_types"]]
    own = slides == _pattern(architecture.window_period, len(slides))
    return window, None if own or not architecture.any_window_pattern else tuple(slides)


# -- rotary embedding ----------------------------------------------------------------------------


def _rotary_problems(architecture: Architecture, canonical: CanonicalSettings) -> Iterator[str]:
    """Yield the rotary settings that the architecture does not support."""
    layers, period = canonical["num_hidden_layers"], architecture.rotary_period
    expected = [True] * layers if period is None else _pattern(period, layers)
    if list(canonical["rope_layers"] or [True] * layers) != expected:
        yield f"layers without rotary embedding like these in architecture {architecture.name}"
    for layer_type in sorted(set(canonical["layer_types"])):
        rope = rope_of(canonical, layer_type)
        rope_type = rope.get("rope_type", "default")
        in_window = layer_type == "sliding_attention" and architecture.own_rotary_in_window
        types = ("default",) if in_window else architecture.rope_types
        if rope_type not in types or (rope_type == "yarn" and not rope.get("truncate", True)):
            yield f"rope_type {rope_type!r} in architecture {architecture.name}"
            return
    if architecture.frequency_factors or "default" not in architecture.rope_types:
        return
    ropes = {str(rope_of(canonical, layer_type)) for layer_type in canonical["layer_types"]}
    if len(ropes) > 1 and not architecture.own_rotary_in_window:
        yield f"several rope_parameters in architecture {architecture.name}"


def _rotary(architecture: Architecture, canonical: CanonicalSettings) -> tuple[GgufRotary, float]:
    """Return the rotary embedding and the factor on the queries that it leaves to the weights."""
    types = canonical["layer_types"]
    main = "full_attention" if "full_attention" in types else types[0]
    rope = rope_of(canonical, main)
    embedding = rotary_embedding(canonical, types.index(main), torch.device("cpu"))
    if architecture.frequency_factors:
        factors = _frequency_factors(float(rope["rope_theta"]), embedding)
        tables = {} if factors is None else {FREQUENCY_FACTORS: factors}
        rotary = GgufRotary(
            dimensions=canonical["head_dim"], theta=float(rope["rope_theta"]), tables=tables
        )
        return rotary, float(embedding.attention_scaling) ** 2
    settings: dict[str, Any] = {
        "dimensions": rotating_dims(canonical, main),
        "theta": float(rope["rope_theta"]),
    }
    if architecture.own_rotary_in_window and "sliding_attention" in types:
        in_window = rope_of(canonical, "sliding_attention")
        settings["theta_in_window"] = float(in_window["rope_theta"])
    scaling, factor = _SCALINGS[rope.get("rope_type", "default")](rope, canonical, embedding)
    return GgufRotary(**settings, **scaling), factor


def _frequency_factors(theta: float, embedding: Phi3RotaryEmbedding) -> tuple[float, ...] | None:
    """Return the divisors of `theta^(-j/m)` that give the frequencies; None if all are 1."""
    frequencies = embedding.inv_freq.double()
    exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
    factors = theta**-exponents / frequencies
    plain = torch.allclose(factors, torch.ones_like(factors), rtol=1e-6, atol=0.0)
    return None if plain else tuple(factors.tolist())


def _no_scaling(
    rope: Mapping[str, Any], canonical: CanonicalSettings, embedding: Phi3RotaryEmbedding
) -> tuple[dict[str, Any], float]:
    del rope, canonical, embedding
    return {}, 1.0


def _linear_scaling(
    rope: Mapping[str, Any], canonical: CanonicalSettings, embedding: Phi3RotaryEmbedding
) -> tuple[dict[str, Any], float]:
    del canonical, embedding
    return {"scaling": RopeScalingType.LINEAR, "scaling_factor": float(rope["factor"])}, 1.0


def _yarn_scaling(
    rope: Mapping[str, Any], canonical: CanonicalSettings, embedding: Phi3RotaryEmbedding
) -> tuple[dict[str, Any], float]:
    """Return YaRN's settings; llama.cpp multiplies the embedding by 1 + 0.1 ln(factor)."""
    factor = float(rope["factor"])
    original = rope.get("original_max_position_embeddings") or canonical["max_position_embeddings"]
    beta = (float(rope.get("beta_fast") or 32.0), float(rope.get("beta_slow") or 1.0))
    own = 1.0 + 0.1 * float(torch.tensor(factor, dtype=torch.float64).log())
    settings = {
        "scaling": RopeScalingType.YARN,
        "scaling_factor": factor,
        "original_context_length": int(original),
        "beta": None if beta == (32.0, 1.0) else beta,
    }
    return settings, (float(embedding.attention_scaling) / own) ** 2


def _longrope_scaling(
    rope: Mapping[str, Any], canonical: CanonicalSettings, embedding: Phi3RotaryEmbedding
) -> tuple[dict[str, Any], float]:
    """Return the two tables; llama.cpp takes the long one if its context exceeds the original."""
    original = (
        canonical["original_max_position_embeddings"] or rope["original_max_position_embeddings"]
    )
    settings = {
        "original_context_length": int(original),
        "attention_factor": float(embedding.attention_scaling),
        "tables": {
            LONG_FACTORS: tuple(map(float, rope["long_factor"])),
            SHORT_FACTORS: tuple(map(float, rope["short_factor"])),
        },
    }
    return settings, 1.0


_SCALINGS = MappingProxyType(
    {
        "default": _no_scaling,
        "linear": _linear_scaling,
        "yarn": _yarn_scaling,
        "longrope": _longrope_scaling,
    }
)
