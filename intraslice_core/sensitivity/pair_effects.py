"""What each rotary pair does to the attention's output: the features of `selection.joint_pairs`.

At a query i, scores `s_ij`, probabilities `a_ij`, output `o_i = Σ_j a_ij v_j`. A change `δs_ij` of
the scores changes the output by `Σ_j a_ij δs_ij (v_j - o_i)`. Pair c's part of the scores is
`q_c · k_c` (real part) and, turned by 90°, `q_c ∧ k_c` (imaginary part); both are bilinear, so the
sums over keys are taken once per key dimension. A metric on the output (`W_o` and the Fisher
matrix of the loss behind it) makes squared lengths of features losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from intraslice_core.decoder_layer import LayerSettings
from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE


@dataclass(kw_only=True)
class PairEffectAccumulator:
    """Sums for the Gram matrix of features, one sequence and some of its queries at a time."""

    num_key_value_heads: int
    head_dim: int
    settings: LayerSettings
    device: torch.device
    _gram: Tensor = field(init=False)
    _queries: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.head_dim, self.head_dim)
        self._gram = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)

    def add(
        self, query: Tensor, key: Tensor, value: Tensor, metric: Tensor, positions: Tensor
    ) -> None:
        """Take one sequence.

        Args:
            query: (num_attention_heads, sequence, head_dim) after norm and RoPE.
            key: (num_key_value_heads, sequence, head_dim) after norm and RoPE.
            value: (num_key_value_heads, sequence, v_head_dim).
            metric: of each query head's output, (num_attention_heads, v_head_dim, m): features
                are multiplied by it, so that their squared lengths are losses.
            positions: of the queries that are looked at, (n,).

        Raises:
            NumericalError: if an activation is not finite.
        """
        group = query.shape[0] // key.shape[0]
        for head, (keys, values) in enumerate(zip(key, value, strict=True)):
            products = (keys.unsqueeze(-1) * values.unsqueeze(-2)).flatten(1)
            for number in range(head * group, (head + 1) * group):
                asked = query[number, positions]
                effects = self._effects(asked, keys, values, products, positions)
                features = _features(asked.float(), effects @ metric[number].float())
                self._gram[head] += features @ features.mT
        if not torch.isfinite(self._gram).all():
            raise NumericalError("a query, a key or a value is NaN or infinite")
        self._queries += positions.shape[0]

    def _effects(
        self, query: Tensor, key: Tensor, value: Tensor, products: Tensor, positions: Tensor
    ) -> Tensor:
        """`Σ_j a_ij k_jc (v_j - o_i)` by key dimension c, (n, head_dim, v_head_dim), float32."""
        settings = self.settings
        scores = (query @ key.mT).float() * settings.attention_scale
        slope = torch.ones_like(scores)
        if settings.attn_logit_softcapping is not None:
            capped = torch.tanh(scores / settings.attn_logit_softcapping)
            scores, slope = capped * settings.attn_logit_softcapping, 1.0 - capped.square()
        places = torch.arange(key.shape[0], device=key.device)
        hidden = places > positions.unsqueeze(-1)
        if settings.sliding_window is not None:
            hidden |= places <= positions.unsqueeze(-1) - settings.sliding_window
        probabilities = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        output = probabilities @ value.float()
        sloped = (probabilities * slope * settings.attention_scale).to(key.dtype)
        moved = (sloped @ products).float().view(len(positions), key.shape[-1], -1)
        weighed = (sloped @ key).float()
        return moved - weighed.unsqueeze(-1) * output.unsqueeze(-2)

    def moment(self) -> Tensor:
        """Average over all queries so far, (num_key_value_heads, head_dim, head_dim), float64."""
        if self._queries == 0:
            raise NumericalError("no queries were seen")
        return self._gram / self._queries


def _features(query: Tensor, effects: Tensor) -> Tensor:
    """Real parts of all pairs, then imaginary parts: (head_dim, n · m).

    Args:
        query: (n, head_dim).
        effects: (n, head_dim, m).
    """
    first, second = query.unsqueeze(-1).chunk(2, dim=1)
    one, other = effects.chunk(2, dim=1)
    real, imaginary = first * one + second * other, first * other - second * one
    return torch.cat((real, imaginary), dim=1).transpose(0, 1).flatten(1)
