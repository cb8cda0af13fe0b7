"""Transformers model of the IntraSlice decoder: layers of different shapes, for every family.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the
configuration and components beside it. Differences between families are settings of the
configuration; norms, eager attention and rotary frequencies are transformers' own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, eager_attention_forward
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .components_intraslice import (
    LAYER_TYPES,
    SHARED,
    IntraSliceHeadNorm,
    IntraSliceMLP,
    IntraSlicePositions,
    IntraSliceResidualPart,
    IntraSliceRotaryEmbedding,
    IntraSliceScaledEmbedding,
    IntraSliceSlicedNorm,
    apply_if_present,
    attend_once,
    attention_masks,
    build_embedding,
    build_embedding_shortcut,
    build_norm,
    distinct_pairs,
    pad_heads,
    positions_of,
    query_scale,
    rotary_layer_types,
    rotate,
)
from .configuration_intraslice import IntraSliceConfig


class IntraSliceAttention(nn.Module):
    """Grouped-query attention with per-layer numbers of heads and query/key and value widths."""

    rotary_index: Tensor | None

    def __init__(self, config: IntraSliceConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        assert config.head_dim is not None  # set on construction
        assert config.layer_types is not None
        self.config = config  # the global one, which `set_attn_implementation` changes
        self.layer_idx = layer_idx
        self.num_heads = layer.num_attention_heads
        self.num_key_value_heads = layer.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.qk_head_dim = layer.qk_head_dim
        self.v_head_dim = layer.v_head_dim
        self.dense_head_dim = config.head_dim
        self.head_dim = layer.qk_head_dim
        self.scaling = config.attention_scale
        self.softcap = config.attn_logit_softcapping
        slides = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if slides else None
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.rotates = config.rotates(layer_idx)
        self.query_scaling = config.query_scaling
        self.rotary_pairs = distinct_pairs(layer.rotary_pairs, config.head_dim // 2)
        hidden = config.hidden_size
        self.reads = IntraSliceResidualPart(
            layer.attention_reads, layer.attention_input_size or hidden
        )
        self.writes = IntraSliceResidualPart(layer.attention_writes, layer.mlp_input_size or hidden)
        self._add_projections(config)
        index = self.build_rotary_index() if self.rotary_pairs else None
        self.register_buffer("rotary_index", index, persistent=False)

    def _add_projections(self, config: IntraSliceConfig) -> None:
        read, bias = self.reads.width, config.attention_bias
        heads, groups = self.num_heads, self.num_key_value_heads
        self.q_proj = nn.Linear(read, heads * self.qk_head_dim, bias=bias)
        self.k_proj = nn.Linear(read, groups * self.qk_head_dim, bias=bias)
        self.v_proj = nn.Linear(read, groups * self.v_head_dim, bias=bias)
        output_bias = config.attention_output_bias
        self.o_proj = nn.Linear(heads * self.v_head_dim, self.writes.width, bias=output_bias)
        dense = config.dense_view()
        self.q_norm = self._head_norm(config, heads // groups, dense.num_attention_heads)
        self.k_norm = self._head_norm(config, 1, dense.num_key_value_heads or 0)

    def _head_norm(
        self, config: IntraSliceConfig, heads: int, dense_heads: int
    ) -> IntraSliceHeadNorm | None:
        if not config.qk_norm:
            return None
        groups, width = self.num_key_value_heads, self.qk_head_dim
        return IntraSliceHeadNorm(config, groups, heads, width, dense_heads)

    def build_rotary_index(self) -> Tensor:
        """Return the columns of the rotary table for this layer, cosines then sines.

        Returns:
            (2 · heads · qk_head_dim,), on the CPU. `heads` is 1 if all KV heads keep the same
            pairs.
        """
        pairs = torch.tensor(self.rotary_pairs, dtype=torch.long, device="cpu")
        columns = torch.cat((pairs, pairs + self.dense_head_dim // 2), dim=-1)
        return torch.stack((columns, columns + self.dense_head_dim)).flatten()

    def rotary_tables(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer's cosines and signed sines from the model's rotary table.

        Args:
            table: (batch, sequence, 2 · head_dim).

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
        position_embeddings: Tensor | None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention; shapes as in transformers' `LlamaAttention`.

        Args:
            hidden_states: (batch, sequence, hidden_size).
            position_embeddings: the rotary table, (batch, sequence, 2 · head_dim); None in a model
                without rotary embedding.
            attention_mask: mask in the form that the attention implementation expects.
            past_key_values: the cache; keys and values may differ in width.
            **kwargs: passed to the attention implementation.

        Returns:
            The output, (batch, sequence, hidden_size), and the attention weights if the
            implementation returns them.
        """
        batch, sequence = hidden_states.shape[:2]
        hidden_states = self.reads.read(hidden_states)
        grouped = (batch, sequence, self.num_key_value_heads, -1, self.qk_head_dim)
        query = self.q_proj(hidden_states).view(grouped).permute(0, 2, 3, 1, 4)
        key = self.k_proj(hidden_states).view(grouped).permute(0, 2, 3, 1, 4)
        value = self.v_proj(hidden_states).view(batch, sequence, -1, self.v_head_dim)
        value = value.transpose(1, 2).contiguous()
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)

        if self.rotates:
            assert position_embeddings is not None
            cos, sin = self.rotary_tables(position_embeddings)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.query_scaling is not None:
            query = query * query_scale(kwargs["position_ids"], self.query_scaling).to(query.dtype)
        query, key = query.flatten(1, 2), key.flatten(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        # The function is looked up and called here, by a local name: vLLM searches this source for
        # the call.
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        width = self._common_width(implementation)
        dropout = (self.attention_dropout or 0.0) if self.training else 0.0
        if implementation == "sdpa" and sequence == 1:
            output, weights = attend_once(query, key, value, attention_mask, self.scaling, dropout)
        else:
            output, weights = attend(
                self,
                pad_heads(query, width),
                pad_heads(key, width),
                pad_heads(value, width),
                attention_mask,
                dropout=dropout,
                scaling=self.scaling,
                sliding_window=self.sliding_window,
                softcap=self.softcap,
                **kwargs,
            )
        output = output.reshape(batch, sequence, self.num_heads, -1)[..., : self.v_head_dim]
        return self.writes.write(self.o_proj(output.reshape(batch, sequence, -1))), weights

    def _common_width(self, implementation: str | None) -> int:
        """Return the width to which queries, keys and values are zero-padded, or 0.

        Zero columns do not change the result. Flash kernels crop or reject unequal widths. SDPA
        falls back to its math path: measured 3.5 times slower on a prefill of 512 tokens (CPU,
        float32, widths 44 and 40). vLLM's caches and kernels have the dense head dim.
        """
        if implementation == "vllm":
            dense: int = self.dense_head_dim
            return dense
        if implementation is not None and ("flash" in implementation or implementation == "sdpa"):
            wider: int = max(self.qk_head_dim, self.v_head_dim)
            return wider
        return 0


class IntraSliceDecoderLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """Decoder layer; a removed module is None, and the hidden states bypass it."""

    input_layernorm: nn.Module | None
    post_attention_layernorm: nn.Module | None
    attention_output_norm: nn.Module | None
    mlp_output_norm: nn.Module | None
    attention_shortcut: nn.Module | None
    mlp_shortcut: nn.Module | None

    def __init__(self, config: IntraSliceConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        has_attention, has_mlp = layer.num_attention_heads > 0, layer.intermediate_size > 0
        self.hidden_size = config.hidden_size
        self.residual_scale = config.residual_scale
        self.parallel_block = config.parallel_block
        self.self_attn = IntraSliceAttention(config, layer_idx) if has_attention else None
        self.mlp = IntraSliceMLP(config, layer) if has_mlp else None
        self.attention_shortcut = self.mlp_shortcut = None
        if config.residual_shortcuts:
            self._add_sliced_residual(config, layer)
        else:
            self._add_norms(config)

    def _add_sliced_residual(self, config: IntraSliceConfig, layer: Any) -> None:
        """Add the matrices on both residual connections, and norms without weights."""
        before, between = layer.attention_input_size, layer.mlp_input_size
        self.attention_shortcut = nn.Linear(before, between, bias=False)
        self.mlp_shortcut = nn.Linear(between, layer.output_size, bias=False)
        self.input_layernorm = IntraSliceSlicedNorm(config)
        self.post_attention_layernorm = IntraSliceSlicedNorm(config)
        self.attention_output_norm = self.mlp_output_norm = None

    def _add_norms(self, config: IntraSliceConfig) -> None:
        # Norms remain without their module, so that all layers have the same tensor names.
        self.input_layernorm = build_norm(config) if config.input_norms else None
        shares_norm = config.parallel_block and not config.separate_mlp_norm
        with_mlp_norm = config.input_norms and not shares_norm
        self.post_attention_layernorm = build_norm(config) if with_mlp_norm else None
        self.attention_output_norm = build_norm(config) if config.output_norms else None
        self.mlp_output_norm = build_norm(config) if config.output_norms else None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Add the outputs of attention and MLP to hidden states, (batch, sequence, hidden_size)."""
        if self.parallel_block:
            return self._forward_parallel(hidden_states, **kwargs)
        if self.self_attn is not None:
            normed = apply_if_present(self.input_layernorm, hidden_states)
            update, _ = self.self_attn(hidden_states=normed, **kwargs)
            update = apply_if_present(self.attention_output_norm, update)
            carried = apply_if_present(self.attention_shortcut, hidden_states)
            hidden_states = carried + self._scaled(update)
        if self.mlp is not None:
            update = self.mlp(apply_if_present(self.post_attention_layernorm, hidden_states))
            update = apply_if_present(self.mlp_output_norm, update)
            carried = apply_if_present(self.mlp_shortcut, hidden_states)
            hidden_states = carried + self._scaled(update)
        return hidden_states

    def _scaled(self, update: Tensor) -> Tensor:
        """Return a module's contribution, multiplied by the residual scale."""
        return update if self.residual_scale == 1.0 else update * self.residual_scale

    def _forward_parallel(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Add the outputs of both modules, in the order used by Phi and GPT-NeoX."""
        normed = apply_if_present(self.input_layernorm, hidden_states)
        terms: list[Tensor] = []
        if self.self_attn is not None:
            terms.append(self._scaled(self.self_attn(hidden_states=normed, **kwargs)[0]))
        if self.mlp is not None:
            own_norm = self.post_attention_layernorm
            inputs = normed if own_norm is None else own_norm(hidden_states)
            terms.append(self._scaled(self.mlp(inputs)))
        return functools.reduce(torch.add, [*terms, hidden_states])


class IntraSlicePreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Base class of `IntraSliceModel` and `IntraSliceForCausalLM`."""

    config_class = IntraSliceConfig
    config: IntraSliceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["IntraSliceDecoderLayer"]  # noqa: RUF012 (as transformers has it)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_states": IntraSliceDecoderLayer,
        "attentions": IntraSliceAttention,
    }

    def _sdpa_can_dispatch(self, is_init_check: bool = False) -> bool:
        """Reject SDPA for soft-capped scores, because SDPA would silently omit the cap.

        transformers then uses eager attention by default.
        """
        if self.config.attn_logit_softcapping is not None:
            raise ValueError(
                'attn_implementation="sdpa" does not support attn_logit_softcapping; '
                'use attn_implementation="eager", "flex_attention" or "flash_attention_2"'
            )
        return super()._sdpa_can_dispatch(is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module and rebuild the buffers that are lost on the meta device."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, (Gemma2RMSNorm, NemotronLayerNorm1P)):
            init.zeros_(module.weight)
        elif isinstance(module, (IntraSliceHeadNorm, IntraSliceResidualPart)):
            module.reset_parameters()
        elif isinstance(module, IntraSliceScaledEmbedding):
            init.constant_(module.embed_scale, module.scale)
        elif isinstance(module, IntraSliceAttention) and module.rotary_index is not None:
            init.copy_(module.rotary_index, module.build_rotary_index())


class IntraSliceModel(IntraSlicePreTrainedModel):  # type: ignore[no-untyped-call]
    """Decoder without output head: embedding, layers of different shapes and final norm."""

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = build_embedding(config)
        self.embedding_shortcut = build_embedding_shortcut(config)
        self.embed_positions = IntraSlicePositions(config) if config.position_rows else None
        self.layers = nn.ModuleList(
            IntraSliceDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = build_norm(config)
        self.rotary_emb = nn.ModuleDict(
            {name: IntraSliceRotaryEmbedding(config, name) for name in rotary_layer_types(config)}
        )
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states; arguments as in transformers' decoder models.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            cached = 0 if past_key_values is None else past_key_values.get_seq_length()
            counted = attention_mask if self.embed_positions is not None else None
            position_ids = positions_of(hidden_states, counted, cached)
        hidden_states = apply_if_present(self.embedding_shortcut, hidden_states)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids)
        masks = attention_masks(
            self.config, hidden_states, attention_mask, past_key_values, position_ids
        )
        tables = self._rotary_tables(hidden_states, position_ids)
        layer_types = self.config.layer_types or []
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks.get(layer_types[index]),
                position_embeddings=tables.get(layer_types[index]),
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    def _rotary_tables(self, hidden_states: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Return the rotary table of every layer type; types with equal settings share one."""
        tables = {
            name: rotary(hidden_states, position_ids) for name, rotary in self.rotary_emb.items()
        }
        if SHARED in tables:
            return dict.fromkeys(LAYER_TYPES, tables[SHARED])
        return tables


class IntraSliceForCausalLM(IntraSlicePreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Causal language model: `IntraSliceModel` with an output head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__(config)
        self.model = IntraSliceModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0913 (`generate` reads the signature)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits and, with `labels`, the loss; arguments as in transformers' models."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> Any:
        """Prepare inputs; discard the cache at the length where longrope changes its frequencies.

        The cached keys were rotated by the short frequencies.
        """
        if past_key_values is not None:
            cached = past_key_values.get_seq_length()
            if any(cached <= limit < input_ids.shape[1] for limit in self._longrope_limits()):
                past_key_values = None
                kwargs["next_sequence_length"] = None
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        return prepare(input_ids, past_key_values=past_key_values, **kwargs)

    def _longrope_limits(self) -> list[int]:
        """Return the lengths up to which longrope uses its short frequencies."""
        settings = [rotary.config.rope_parameters for rotary in self.model.rotary_emb.values()]
        return [
            rope["original_max_position_embeddings"]
            for rope in settings
            if rope["rope_type"] == "longrope"
        ]


__all__ = ["IntraSliceForCausalLM", "IntraSliceModel", "IntraSlicePreTrainedModel"]
