"""IntraSlice decoder made of vLLM's own layers, for decoders with Llama's settings.

Projections have the layer's sliced shapes. Between them, queries, keys and values are gathered into
dense heads, so that vLLM's rotary embedding, attention kernels and KV caches serve every layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig  # type: ignore[import-not-found]
from vllm.model_executor.layers.attention import Attention  # type: ignore[import-not-found]
from vllm.model_executor.layers.layernorm import RMSNorm  # type: ignore[import-not-found]
from vllm.model_executor.layers.linear import (  # type: ignore[import-not-found]
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import get_rope  # type: ignore[import-not-found]
from vllm.model_executor.models.llama import (  # type: ignore[import-not-found]
    LlamaForCausalLM,
    LlamaMLP,
)
from vllm.model_executor.models.transformers import (  # type: ignore[import-not-found]
    TransformersForCausalLM,
)
from vllm.model_executor.models.utils import (  # type: ignore[import-not-found]
    extract_layer_index,
)

from intraslice_core.modeling import decode_rotary_pairs
from intraslice_core.vllm_plugin import common_heads, dense_columns, runs_in_vllm_layers


class IntraSliceForCausalLM(TransformersForCausalLM):  # type: ignore[misc]
    """IntraSlice decoder of any family; with Llama's settings an `IntraSliceLlamaForCausalLM`.

    Tensor parallelism is left to vLLM's backend for transformers models, which splits the MLPs.
    """

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        """Return the model that computes the decoder of the configuration."""
        config = vllm_config.model_config.hf_config
        single = vllm_config.parallel_config.tensor_parallel_size == 1
        # vLLM's adapters for pooling derive classes from this one.
        if cls is IntraSliceForCausalLM and single and runs_in_vllm_layers(config):
            return IntraSliceLlamaForCausalLM(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)


class IntraSliceLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """vLLM's Llama with layers of different shapes."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        config.rms_norm_eps = config.norm_eps
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=IntraSliceLlamaLayer)


class IntraSliceLlamaLayer(nn.Module):
    """Decoder layer; a removed module is None, and the hidden states bypass it."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        layer = config.per_layer_config[extract_layer_index(prefix)]
        self.self_attn = self.mlp = None
        if layer.num_attention_heads:
            self.self_attn = IntraSliceLlamaAttention(vllm_config, layer, f"{prefix}.self_attn")
        if layer.intermediate_size:
            self.mlp = LlamaMLP(
                hidden_size=config.hidden_size,
                intermediate_size=layer.intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=vllm_config.quant_config,
                bias=config.mlp_bias,
                prefix=f"{prefix}.mlp",
            )
        # Norms remain without their module, because their weights are in the checkpoint.
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the last module's output and the hidden states to which it is yet to be added."""
        if self.self_attn is not None:
            normed, residual = _add_and_norm(self.input_layernorm, hidden_states, residual)
            hidden_states = self.self_attn(positions, normed)
        if self.mlp is not None:
            normed, residual = _add_and_norm(self.post_attention_layernorm, hidden_states, residual)
            hidden_states = self.mlp(normed)
        return hidden_states, residual


def _add_and_norm(
    norm: nn.Module, hidden_states: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the normed sum of both, and the sum; the first module of a model has no residual."""
    if residual is None:
        return norm(hidden_states), hidden_states
    normed, residual = norm(hidden_states, residual)
    return normed, residual


class IntraSliceLlamaAttention(nn.Module):
    """Attention with sliced projections around vLLM's attention of dense heads."""

    inputs: Tensor
    outputs: Tensor

    def __init__(self, vllm_config: VllmConfig, layer: Any, prefix: str) -> None:
        super().__init__()
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        heads, groups = layer.num_attention_heads, layer.num_key_value_heads
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            layer.qk_head_dim,
            heads,
            groups,
            bias=config.attention_bias,
            quant_config=quantization,
            prefix=f"{prefix}.qkv_proj",
            v_head_size=layer.v_head_dim,
        )
        self.o_proj = RowParallelLinear(
            heads * layer.v_head_dim,
            config.hidden_size,
            bias=config.attention_output_bias,
            quant_config=quantization,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            config.head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
        )
        per_group, all_groups = common_heads(config)
        width, key_width = per_group * all_groups * config.head_dim, all_groups * config.head_dim
        self.dense_widths = [width, key_width, key_width]
        self.attn = Attention(
            per_group * all_groups,
            config.head_dim,
            config.attention_scale,
            num_kv_heads=all_groups,
            cache_config=vllm_config.cache_config,
            quant_config=quantization,
            prefix=f"{prefix}.attn",
        )
        every = list(range(config.head_dim // 2))
        pairs = decode_rotary_pairs(layer.rotary_pairs) or [every] * groups
        columns = dense_columns(layer, pairs, config.head_dim, (per_group, all_groups))
        for name, index in zip(("inputs", "outputs"), columns, strict=True):
            self.register_buffer(name, index.to(self.qkv_proj.weight.device), persistent=False)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Return the attention's output for hidden states, both (tokens, hidden_size)."""
        sliced, _ = self.qkv_proj(hidden_states)
        dense = F.pad(sliced, (0, 1)).index_select(1, self.inputs)
        query, key, value = torch.split(dense, self.dense_widths, dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        attended = self.attn(query, key, value).index_select(1, self.outputs)
        output: Tensor = self.o_proj(attended)[0]
        return output


__all__ = ["IntraSliceForCausalLM"]
