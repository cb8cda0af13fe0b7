"""First-order effect of each rotary pair on the attention's output (docs/method.md, section 3c).

In layers without RoPE, the moments of queries and of the keys' effects take the place of pairs.

These are the features that `selection.rotary_pairs` eliminates jointly. At query i with scores
`s_ij`, probabilities `a_ij` and output `o_i = Σ_j a_ij v_j`, a change `δs_ij` of the scores changes
the output by `Σ_j a_ij δs_ij (v_j - o_i)`. Pair c contributes `q_c · k_c` to a score (real part)
and, turned by 90°, `q_c ∧ k_c` (imaginary part). Both are bilinear, so the sums over keys are
computed once per key dimension. A metric on the output (`W_o` and the Fisher matrix of the loss)
makes the squared lengths of features losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from intraslice_core.decoder_layer import LayerSettings
from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE

PAIR_BLOCKS = 4
"""Blocks of queries, each multiplied with the keys up to its last query only."""


@dataclass(frozen=True, kw_only=True)
class PairInputs:
    """Queries, keys and values of one sequence, and the scale of the attention's output."""

    query: Tensor
    """(num_attention_heads, sequence, head_dim) after norm and RoPE."""
    key: Tensor
    """(num_key_value_heads, sequence, head_dim) after norm and RoPE."""
    value: Tensor
    """(num_key_value_heads, sequence, v_head_dim)."""
    scale: Tensor | None = None
    """Factor of an output norm on the output of every query, (sequence,); None without norm."""


@dataclass(kw_only=True)
class PairEffectAccumulator:
    """Accumulator of the features' Gram matrix `Φ`, one sequence at a time."""

    num_key_value_heads: int
    head_dim: int
    settings: LayerSettings
    device: torch.device
    with_score_moments: bool = False
    """Flag to accumulate `score_moments`, too."""
    _gram: Tensor = field(init=False)
    _query_moment: Tensor = field(init=False)
    _key_moment: Tensor = field(init=False)
    _queries: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.num_key_value_heads, self.head_dim, self.head_dim)
        self._gram = torch.zeros(shape, dtype=WORKING_DTYPE, device=self.device)
        self._query_moment = torch.zeros_like(self._gram)
        self._key_moment = torch.zeros_like(self._gram)

    def add(self, inputs: PairInputs, metric: Tensor, positions: Tensor) -> None:
        """Add one sequence.

        Args:
            inputs: of the sequence.
            metric: metric of each query head's output, (num_attention_heads, v_head_dim, m).
                Features are multiplied by it, so that their squared lengths are losses.
            positions: positions of the queries to use, ascending, (n,), int64.

        Raises:
            NumericalError: if an activation is not finite.
        """
        query, key, value = inputs.query, inputs.key, inputs.value
        group = query.shape[0] // key.shape[0]
        blocks = [block for block in torch.tensor_split(positions, PAIR_BLOCKS) if len(block)]
        for head, (keys, values) in enumerate(zip(key, value, strict=True)):
            products = (keys.unsqueeze(-1) * values.unsqueeze(-2)).flatten(1)
            heads = slice(head * group, (head + 1) * group)
            for block in blocks:
                visible = slice(0, int(block[-1]) + 1)
                queries = query[heads, block].flatten(0, 1)
                effects = self._effects(
                    queries, keys[visible], values[visible], products[visible], block.repeat(group)
                )
                if inputs.scale is not None:
                    effects *= inputs.scale[block].repeat(group)[:, None, None]
                per_head = effects.view(group, len(block) * effects.shape[1], -1)
                weighed = (per_head @ metric[heads].float()).view(*effects.shape[:2], -1)
                features = _features(queries.float(), weighed)
                self._gram[head] += features @ features.mT
                if self.with_score_moments:
                    self._add_score_moments(head, queries.float(), weighed)
        if not torch.isfinite(self._gram).all():
            raise NumericalError("a query, a key or a value is NaN or infinite")
        self._queries += positions.shape[0]

    def _effects(
        self, query: Tensor, key: Tensor, value: Tensor, products: Tensor, positions: Tensor
    ) -> Tensor:
        """Return `Σ_j a_ij k_jc (v_j - o_i)` by key dimension c, (n, head_dim, v_head_dim).

        The result is float32 and includes the attention scale and the derivative of the soft cap.

        Args:
            query: (n, head_dim).
            key: (sequence, head_dim).
            value: (sequence, v_head_dim).
            products: `k_jc v_jd` of every key, (sequence, head_dim · v_head_dim).
            positions: of the queries, (n,).
        """
        settings = self.settings
        scores = (query @ key.mT).float() * settings.attention_scale
        slope = torch.ones_like(scores)
        if settings.attn_logit_softcapping is not None:
            capped = torch.tanh(scores / settings.attn_logit_softcapping)
            scores, slope = capped * settings.attn_logit_softcapping, 1.0 - capped.square()
        key_positions = torch.arange(key.shape[0], device=key.device)
        masked = key_positions > positions.unsqueeze(-1)
        if settings.sliding_window is not None:
            masked |= key_positions <= positions.unsqueeze(-1) - settings.sliding_window
        probabilities = scores.masked_fill(masked, -torch.inf).softmax(-1)
        output = probabilities @ value.float()
        derivatives = (probabilities * slope * settings.attention_scale).to(key.dtype)
        key_values = (derivatives @ products).float().view(len(positions), key.shape[-1], -1)
        mean_keys = (derivatives @ key).float()
        return key_values - mean_keys.unsqueeze(-1) * output.unsqueeze(-2)

    def _add_score_moments(self, head: int, query: Tensor, effects: Tensor) -> None:
        """Add the partial traces of `Σ_i q qᵀ ⊗ E Eᵀ`.

        Args:
            head: KV head.
            query: (n, head_dim).
            effects: `E` of every query, by key dimension, (n, head_dim, m).
        """
        strengths = effects.square().sum((1, 2))
        self._query_moment[head] += (query * strengths.unsqueeze(-1)).mT @ query
        lengths = query.square().sum(-1)
        flat = (effects * lengths.sqrt()[:, None, None]).transpose(0, 1).flatten(1)
        self._key_moment[head] += flat @ flat.mT

    def score_moments(self) -> tuple[Tensor, Tensor]:
        """Return the partial traces of `Λ` for queries and keys, averaged over all queries so far.

        Returns:
            Two tensors (num_key_value_heads, head_dim, head_dim), float64, of equal trace.

        Raises:
            NumericalError: if no queries were added.
        """
        if self._queries == 0:
            raise NumericalError("no queries were seen")
        return self._query_moment / self._queries, self._key_moment / self._queries

    def moment(self) -> Tensor:
        """Return the average over all queries so far.

        Returns:
            (num_key_value_heads, head_dim, head_dim), float64.

        Raises:
            NumericalError: if no queries were added.
        """
        if self._queries == 0:
            raise NumericalError("no queries were seen")
        return self._gram / self._queries


def _features(query: Tensor, effects: Tensor) -> Tensor:
    """Return the features, real parts of all pairs, then imaginary parts, (head_dim, n · m).

    Args:
        query: (n, head_dim).
        effects: (n, head_dim, m).
    """
    query_1, query_2 = query.unsqueeze(-1).chunk(2, dim=1)
    effect_1, effect_2 = effects.chunk(2, dim=1)
    real = query_1 * effect_1 + query_2 * effect_2
    imaginary = query_1 * effect_2 - query_2 * effect_1
    return torch.cat((real, imaginary), dim=1).transpose(0, 1).flatten(1)
