"""Attention of one new token per sequence on a CPU, for models of transformers' own classes.

torch's SDPA has no fused kernel for grouped queries on CPUs: it repeats all cached keys and values
for every query head. With the query heads of a KV head as queries of one head nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from intraslice_core.modeling import IntraSliceConfig

_NAME = "intraslice_grouped"
"""Name of the attention among those of transformers."""


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute SDPA as transformers does, for one query per sequence without repeated keys.

    Args:
        module: attention of the model.
        query: (batch, heads, new, width).
        key: (batch, groups, length, width).
        value: (batch, groups, length, value width).
        attention_mask: True where a key is visible, (batch, 1, new, length), or None.
        dropout: probability, 0 while a model writes.
        scaling: factor on the scores; None is the inverse root of the width.
        **kwargs: passed to transformers' function.

    Returns:
        (batch, new, heads, value width), and no weights.
    """
    batch, heads, new, width = query.shape
    if new > 1 or heads == key.shape[1] or kwargs.get("softcap") is not None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    packed = F.scaled_dot_product_attention(
        query.reshape(batch, key.shape[1], -1, width),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return packed.reshape(batch, 1, heads, -1), None


@contextmanager
def without_repeated_keys(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a CPU attend by `grouped_attention` in a block.

    Models with other attention than SDPA, of several parts (multimodal), or of our own class, which
    packs its heads itself, are left as they are.
    """
    applies = (
        model.device.type == "cpu"
        and model.config._attn_implementation == "sdpa"
        and not model.config.sub_configs
        and not isinstance(model.config, IntraSliceConfig)
    )
    if not applies:
        yield
        return
    AttentionInterface.register(_NAME, grouped_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
