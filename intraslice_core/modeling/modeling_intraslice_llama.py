"""A Llama whose layers differ in shape: PyTorch model for transformers.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the
configuration beside it. Everything a dense Llama shares is transformers' own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
)

from .configuration_intraslice_llama import IntraSliceLlamaConfig, decode_rotary_pairs


def _dense_view(config: IntraSliceLlamaConfig) -> IntraSliceLlamaConfig:
    """The same configuration without its layers: the global values may be read from it."""
    view = copy.copy(config)
    view.__dict__.pop("_heterogeneity_spec", None)
    return view


class IntraSliceLlamaRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary table of the dense head dim, computed once per forward and gathered by each layer."""

    def __init__(self, config: IntraSliceLlamaConfig) -> None:
        super().__init__(config=_dense_view(config))

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Cosines, then sines with the first half negated.

        The sign of `rotate_half` sits in the table, so a layer rotates with one product and one
        fused multiply-add.

        Args:
            x: hidden states; gives device and dtype.
            position_ids: (batch, sequence).

        Returns:
            (batch, sequence, 2 · head_dim).
        """
        cos, sin = super().forward(x, position_ids)
        first, second = sin.chunk(2, dim=-1)
        return torch.cat((cos, -first, second), dim=-1)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (batch, groups, heads, sequence, 2 · pairs), half-split, by a signed sine."""
    first, second = states.chunk(2, dim=-1)
    return torch.addcmul(states * cos, torch.cat((second, first), dim=-1), sin)


class IntraSliceLlamaAttention(nn.Module):
    """Attention with its own number of heads, query/key width and value width."""

    rotary_index: Tensor | None

    def __init__(self, config: IntraSliceLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        assert config.head_dim is not None  # set on construction
        self.config = config  # the global one: `set_attn_implementation` changes only that
        self.layer_idx = layer_idx
        self.num_heads = layer.num_attention_heads
        self.num_key_value_heads = layer.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.qk_head_dim = layer.qk_head_dim
        self.v_head_dim = layer.v_head_dim
        self.dense_head_dim = config.head_dim
        self.head_dim = layer.qk_head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.rotary_pairs = _distinct_pairs(layer.rotary_pairs, config.head_dim // 2)

        hidden, bias = config.hidden_size, config.attention_bias
        groups = self.num_key_value_heads
        self.q_proj = nn.Linear(hidden, self.num_heads * self.qk_head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, groups * self.qk_head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, groups * self.v_head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, hidden, bias=bias)
        index = self.build_rotary_index() if self.rotary_pairs else None
        self.register_buffer("rotary_index", index, persistent=False)

    def build_rotary_index(self) -> Tensor:
        """Columns of the rotary table this layer reads, cosines then sines.

        Returns:
            (2 · heads · qk_head_dim,), on the CPU. `heads` is 1 where all KV heads kept the same
            pairs.
        """
        pairs = torch.tensor(self.rotary_pairs, dtype=torch.long, device="cpu")
        columns = torch.cat((pairs, pairs + self.dense_head_dim // 2), dim=-1)
        return torch.stack((columns, columns + self.dense_head_dim)).flatten()

    def rotary_tables(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's cosines and signed sines from the model's (batch, sequence, 2 · head_dim).

        Returns:
            Two tensors (batch, groups or 1, 1, sequence, qk_head_dim).
        """
        if self.rotary_index is not None:
            table = table.index_select(-1, self.rotary_index)
        batch, sequence, _ = table.shape
        table = table.view(batch, sequence, 2, -1, 1, self.qk_head_dim)
        cos, sin = table.permute(2, 0, 3, 4, 1, 5).unbind(0)
        return cos, sin

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; shapes as in transformers' LlamaAttention.

        Args:
            hidden_states: (batch, sequence, hidden_size).
            position_embeddings: the rotary table, (batch, sequence, 2 · head_dim).
            attention_mask: whatever the attention implementation takes.
            past_key_values: the cache; keys and values differ in width.
            **kwargs: passed on to the attention implementation.

        Returns:
            (batch, sequence, hidden_size) and the attention weights, if the implementation has any.
        """
        batch, sequence = hidden_states.shape[:2]
        grouped = (batch, sequence, self.num_key_value_heads, -1, self.qk_head_dim)
        query = self.q_proj(hidden_states).view(grouped).permute(0, 2, 3, 1, 4)
        key = self.k_proj(hidden_states).view(grouped).permute(0, 2, 3, 1, 4)
        value = self.v_proj(hidden_states).view(batch, sequence, -1, self.v_head_dim)
        value = value.transpose(1, 2).contiguous()

        cos, sin = self.rotary_tables(position_embeddings)
        query, key = _rotate(query, cos, sin).flatten(1, 2), _rotate(key, cos, sin).flatten(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        output, weights = self._attend(query, key, value, attention_mask, **kwargs)
        return self.o_proj(output.reshape(batch, sequence, -1)), weights

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the chosen implementation; (batch, sequence, heads, v_head_dim) and weights."""
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if self._needs_equal_widths(implementation, query.shape[2]):
            width = max(self.qk_head_dim, self.v_head_dim)
            query, key, value = (F.pad(t, (0, width - t.shape[-1])) for t in (query, key, value))
        output, weights = attend(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output[..., : self.v_head_dim], weights

    def _needs_equal_widths(self, implementation: str, queries: int) -> bool:
        """Fused kernels want keys as wide as values; zero columns change neither result.

        Flash kernels crop or refuse unequal widths. SDPA falls back to its plain path: measured
        3.5 times slower on a prefill of 512 tokens (CPU, float32, widths 44 and 40), but cheaper
        than padding for a single query.
        """
        if self.qk_head_dim == self.v_head_dim or implementation is None:
            return False
        return "flash" in implementation or (implementation == "sdpa" and queries > 1)


def _distinct_pairs(text: str, total: int) -> list[list[int]] | None:
    """Kept pairs per KV head; one row if all agree; None if nothing was removed."""
    pairs = decode_rotary_pairs(text)
    if all(len(kept) == total for kept in pairs):
        return None
    return pairs[:1] if all(kept == pairs[0] for kept in pairs) else pairs


class IntraSliceLlamaDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer; a module the plan removed is None and its residual passes by."""

    def __init__(self, config: IntraSliceLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        self.hidden_size = config.hidden_size
        has_attention = layer.num_attention_heads > 0
        has_mlp = layer.intermediate_size > 0
        self.self_attn = IntraSliceLlamaAttention(config, layer_idx) if has_attention else None
        self.mlp = LlamaMLP(layer) if has_mlp else None  # type: ignore[no-untyped-call]
        # Norms stay even without their module, so that every layer has the same two names.
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Both modules, each added to the residual stream (batch, sequence, hidden_size)."""
        if self.self_attn is not None:
            normed = self.input_layernorm(hidden_states)
            update, _ = self.self_attn(hidden_states=normed, **kwargs)
            hidden_states = hidden_states + update
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class IntraSliceLlamaPreTrainedModel(LlamaPreTrainedModel):  # type: ignore[no-untyped-call]
    """What base model and language model share."""

    config_class = IntraSliceLlamaConfig
    config: IntraSliceLlamaConfig
    _no_split_modules = ["IntraSliceLlamaDecoderLayer"]  # noqa: RUF012 (as transformers has it)
    _can_record_outputs = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_states": IntraSliceLlamaDecoderLayer,
        "attentions": IntraSliceLlamaAttention,
    }

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module; also rebuild index buffers, which the meta device loses."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, IntraSliceLlamaAttention) and module.rotary_index is not None:
            init.copy_(module.rotary_index, module.build_rotary_index())


class IntraSliceLlamaModel(IntraSliceLlamaPreTrainedModel, LlamaModel):  # type: ignore[no-untyped-call]
    """Llama's trunk with layers of differing shape; `forward` is Llama's own."""

    def __init__(self, config: IntraSliceLlamaConfig) -> None:
        # LlamaModel's constructor would build dense layers first.
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            IntraSliceLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = IntraSliceLlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class IntraSliceLlamaForCausalLM(IntraSliceLlamaPreTrainedModel, LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """Llama's language model over `IntraSliceLlamaModel`; `forward` is Llama's own."""

    def __init__(self, config: IntraSliceLlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = IntraSliceLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


__all__ = ["IntraSliceLlamaForCausalLM", "IntraSliceLlamaModel", "IntraSliceLlamaPreTrainedModel"]
