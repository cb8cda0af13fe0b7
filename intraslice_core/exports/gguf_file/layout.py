"""What a GGUF file says of a model's shapes, for the architectures `llama` and `deci`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from gguf import GGUFWriter
from torch import Tensor

from intraslice_core.families.canonical import CanonicalSettings, rope_of, rotary_embedding
from intraslice_core.plan import LayerPlan


@dataclass(frozen=True, kw_only=True)
class GgufLayout:
    """Shapes and settings; every sequence has one entry a layer."""

    architecture: Literal["llama", "deci"]
    query_heads: tuple[int, ...]
    """0 where the attention is gone."""
    key_value_heads: tuple[int, ...]
    widths: tuple[int, ...]
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...] | None
    """What the frequencies `rope_theta^(-j/m)` are divided by; None: nothing."""
    query_factor: float
    """What queries are multiplied by: the square of the rotary table's own factor."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Write all of it; arrays only where layers differ."""
        writer.add_vocab_size(self.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(self.hidden_size)
        writer.add_block_count(len(self.widths))
        writer.add_feed_forward_length(_shared(self.widths))
        writer.add_head_count(_shared(self.query_heads))
        writer.add_head_count_kv(_shared(self.key_value_heads))
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.norm_eps)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.rope_theta)


def _shared(sizes: tuple[int, ...]) -> int | Sequence[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def llama_layout(canonical: CanonicalSettings, shape: LayerPlan, pairs: Tensor) -> GgufLayout:
    """All layers alike.

    Args:
        canonical: the dense model's settings.
        shape: of every layer.
        pairs: the kept rotary pairs of every head, (qk_pairs,).
    """
    layers = canonical["num_hidden_layers"]
    return _layout("llama", canonical, (shape,) * layers, pairs)


def deci_layout(canonical: CanonicalSettings, shapes: Sequence[LayerPlan]) -> GgufLayout:
    """Layers of different widths, with the dense model's attention or none."""
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
    places = torch.arange(len(pairs), dtype=torch.float64) / len(pairs)
    factors = theta**-places / rotary.inv_freq.double()[pairs.cpu()]
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
