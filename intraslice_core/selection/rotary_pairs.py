"""Which rotary pairs of each KV head stay (section 3c of algorithm.md).

Only whole pairs (j, j + e/2) commute with RoPE, so the choice is a subset of pairs per KV head.
Scores are (num_key_value_heads, pairs); larger stays.
"""

from __future__ import annotations

from torch import Tensor

from intraslice_core.statistics import RotaryStatistics


def centered_score(statistics: RotaryStatistics) -> Tensor:
    """Ours: energy of the logits that a pair contributes, less what is constant over keys."""
    return statistics.query_energy * statistics.centered_key_energy


def paper_score(statistics: RotaryStatistics) -> Tensor:
    """The paper's: mean absolute elementwise product of rotated queries and keys."""
    return statistics.product


def magnitude_score(query: Tensor, key: Tensor, num_key_value_heads: int) -> Tensor:
    """The naive baseline: squared weight norms of a pair's rows.

    Args:
        query: q_proj weight, (num_attention_heads · head_dim, hidden_size).
        key: k_proj weight, (num_key_value_heads · head_dim, hidden_size).
        num_key_value_heads: KV heads.
    """
    head_dim = key.shape[0] // num_key_value_heads
    q = query.double().square().sum(-1).view(num_key_value_heads, -1, head_dim).sum(1)
    k = key.double().square().sum(-1).view(num_key_value_heads, head_dim)
    return (q * k).view(num_key_value_heads, 2, head_dim // 2).sum(-2)


def keep_best_pairs(score: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` best pairs of each KV head, ascending: (num_key_value_heads, keep)."""
    return score.topk(keep, dim=-1).indices.sort(dim=-1).values
