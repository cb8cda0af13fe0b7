"""vLLM plugin: IntraSlice checkpoints run in vLLM without `trust_remote_code`.

vLLM imports this module, an entry point of the package, in each of its processes. Decoders with
Llama's settings are computed by vLLM's own layers (`vllm_model`), others by vLLM's backend for
transformers models, which calls their Python code layer by layer and is slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intraslice_core.export.targets import LLAMA_SETTINGS, has_llama_settings

if TYPE_CHECKING:
    from intraslice_core.modeling import IntraSliceConfig

MODEL = "intraslice_core.vllm_model:IntraSliceForCausalLM"
"""Class that vLLM imports when it loads an IntraSlice decoder."""


def register() -> None:
    """Register the model classes with transformers, and the IntraSlice decoder with vLLM.

    vLLM has its own `DeciLMForCausalLM` and needs only the configuration class for it.
    """
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    from intraslice_core.modeling import IntraSliceForCausalLM
    from intraslice_core.modeling import register as register_with_transformers

    register_with_transformers()
    name = IntraSliceForCausalLM.__name__
    if name not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, MODEL)


def runs_in_vllm_layers(config: IntraSliceConfig) -> bool:
    """Return whether vLLM's own layers compute the decoder."""
    names = (*LLAMA_SETTINGS, "rope_parameters")
    # A checkpoint of an earlier version lacks newer settings, whose defaults are Llama's.
    settings = {name: getattr(config, name, LLAMA_SETTINGS.get(name)) for name in names}
    # Parts of the residual stream are in the transformers model only.
    parts = ("attention_reads", "attention_writes", "mlp_reads", "mlp_writes")
    whole = not any(getattr(layer, part, "") for layer in config.per_layer_config for part in parts)
    return whole and has_llama_settings(settings)


def common_heads(config: IntraSliceConfig) -> tuple[int, int]:
    """Return the largest numbers of query heads per KV head and of KV heads of all layers.

    vLLM's attention has equal numbers of heads in all layers, so that they share one KV cache.
    """
    layers = [layer for layer in config.per_layer_config if layer.num_attention_heads]
    groups = max(layer.num_key_value_heads for layer in layers)
    return max(layer.num_attention_heads // layer.num_key_value_heads for layer in layers), groups


def dense_columns(
    layer: Any, pairs: list[list[int]], head_dim: int, heads: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the columns by which a sliced attention becomes one of dense heads, and back.

    Kept rotary pairs go to their positions in the dense head, so that the dense rotary embedding
    applies; all other dimensions are zero and change neither scores nor outputs.

    Args:
        layer: the layer's configuration.
        pairs: kept rotary pairs of every KV head.
        head_dim: dimensions of a dense head.
        heads: `common_heads`.

    Returns:
        For every dense dimension of queries, keys and values the column of the layer's q, k and v
        side by side, or the column behind them for zero; and for every input of the layer's output
        projection the dimension of the dense output.
    """
    groups, qk, value = layer.num_key_value_heads, layer.qk_head_dim, layer.v_head_dim
    per_group = layer.num_attention_heads // groups
    most, all_groups = heads
    queries, keys = groups * per_group * qk, groups * qk
    zero = queries + keys + groups * value
    dense = torch.full((all_groups, most + 2, head_dim), zero)
    for group, kept in enumerate(pairs):
        first = torch.tensor(kept)
        position = torch.cat((first, first + head_dim // 2))
        for head in range(per_group):
            start = (group * per_group + head) * qk
            dense[group, head, position] = torch.arange(start, start + qk)
        dense[group, most, position] = torch.arange(
            queries + group * qk, queries + (group + 1) * qk
        )
        start = queries + keys + group * value
        dense[group, most + 1, :value] = torch.arange(start, start + value)
    inputs = torch.cat([part.flatten() for part in torch.split(dense, [most, 1, 1], dim=1)])
    outputs = torch.arange(all_groups * most * head_dim).view(all_groups, most, head_dim)
    return inputs, outputs[:groups, :per_group, :value].flatten()
