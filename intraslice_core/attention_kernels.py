"""Kernels of causal attention: torch's, blocks of queries for bfloat16, soft-capped scores.

Queries, keys and values are (batch, heads, sequence, width) after norm and RoPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core.device import bfloat16_products

if TYPE_CHECKING:
    from intraslice_core.decoder_layer import LayerSettings

SCORES_AT_ONCE = 2**24
"""Attention scores in memory at once where no fused kernel exists: 64 MiB in float32."""
_QUERY_BLOCK = 64
"""Queries per block of `blocked`."""
_BLOCK_SCORES = 2**20
"""Scores of one block, 4 MiB in float32, so that they stay in the cache."""


def _visible(sequence: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask of keys (columns) visible to queries (rows); None if it is plain causal."""
    if window is None or window >= sequence:
        return None
    ones = torch.ones(sequence, sequence, dtype=torch.bool, device=device)
    return ones.tril().triu(1 - window)


def fused(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Compute attention by torch's kernel; it requires equal widths, so the narrower is padded."""
    width, padded = max(query.shape[-1], value.shape[-1]), value
    if query.shape[-1] != value.shape[-1]:
        query, key, padded = (
            F.pad(part, (0, width - part.shape[-1])) for part in (query, key, value)
        )
    mask = _visible(query.shape[-2], settings.sliding_window, query.device)
    out = F.scaled_dot_product_attention(
        query, key, padded, attn_mask=mask, is_causal=mask is None, scale=settings.attention_scale
    )
    return out[..., : value.shape[-1]]


def prefers_blocks(query: Tensor, settings: LayerSettings) -> bool:
    """Return whether `blocked` is faster than torch's kernel and applicable."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and settings.attn_logit_softcapping is None
        and not torch.is_grad_enabled()
    )


def blocked(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Compute attention by plain products over blocks of queries, for bfloat16 on a CPU.

    As in torch's kernel, scores are float32 and probabilities are rounded to the values' dtype.
    Torch's kernel multiplies small tiles, three times slower than products of whole blocks.
    Keys and values keep their KV heads; see `attend` for the shapes.

    Returns:
        (batch, sequence, num_attention_heads · v_head_dim).
    """
    batch, heads, sequence, _ = query.shape
    groups, window = key.shape[1], settings.sliding_window or sequence
    out = value.new_empty(batch, sequence, heads, value.shape[-1])
    rows = max(_BLOCK_SCORES // (heads * _QUERY_BLOCK * sequence), 1)
    with bfloat16_products():
        for row in range(0, batch, rows):
            rows_of = slice(row, row + rows)
            grouped = torch.unflatten(query[rows_of].float(), 1, (groups, -1))
            k, v = key[rows_of].float(), value[rows_of]
            for start in range(0, sequence, _QUERY_BLOCK):
                end = min(start + _QUERY_BLOCK, sequence)
                first = max(start + 1 - window, 0)
                q = grouped[:, :, :, start:end].flatten(2, 3)
                scores = (q @ k[:, :, first:end].mT).mul_(settings.attention_scale)
                _hide(torch.unflatten(scores, 2, (-1, end - start)), first, start, window)
                mixed = scores.softmax(-1).to(v.dtype) @ v[:, :, first:end]
                of_heads = torch.unflatten(mixed, 2, (-1, end - start)).flatten(1, 2)
                out[rows_of, start:end] = of_heads.transpose(1, 2)
    return out.flatten(2)


def _hide(scores: Tensor, first: int, start: int, window: int) -> None:
    """Set the scores of keys that a query must not see to -inf, in place.

    Args:
        scores: (…, queries, keys), of queries from position `start` on and keys from `first` on.
        first: position of the first key.
        start: position of the first query.
        window: number of positions a query attends to, its own included.
    """
    queries, keys = scores.shape[-2:]
    # Without a limit by the window, all keys before the block are visible to all of its queries.
    skipped = start - first if window >= start + queries else 0
    rows = torch.arange(start, start + queries, device=scores.device).unsqueeze(-1)
    distance = rows - torch.arange(first + skipped, first + keys, device=scores.device)
    mask = scores.new_zeros(distance.shape)
    mask.masked_fill_((distance < 0) | (distance >= window), -torch.inf)
    scores[..., skipped:].add_(mask)  # several times faster than masked_fill_ of all heads


def softcapped(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Compute attention with capped scores, which no kernel supports, a few heads at a time."""
    cap = settings.attn_logit_softcapping
    assert cap is not None
    sequence = query.shape[-2]
    mask = _visible(sequence, settings.sliding_window, query.device)
    if mask is None:
        mask = torch.ones(sequence, sequence, dtype=torch.bool, device=query.device).tril()
    at_once = max(SCORES_AT_ONCE // sequence**2, 1)
    out = []
    flat = (torch.split(part.flatten(0, 1), at_once) for part in (query, key, value))
    for q, k, v in zip(*flat, strict=True):
        scores = torch.tanh(q @ k.mT * settings.attention_scale / cap) * cap
        scores = scores.masked_fill(~mask, -torch.inf)
        out.append(scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v)
    return torch.cat(out).view(*query.shape[:-1], value.shape[-1])
