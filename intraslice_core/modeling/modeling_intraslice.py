"""A decoder whose layers differ in shape, for every family: PyTorch model for transformers.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the
configuration beside it. What a family does differently is a setting of the configuration; norms,
eager attention and rotary frequencies are transformers' own.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_intraslice import IntraSliceConfig, decode_rotary_pairs

_MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


def _rope_view(config: IntraSliceConfig, layer_type: str) -> Any:
    """The configuration of one layer type's rotary table.

    Without its layers, so that the global values may be read from it, and with one flat
    `rope_parameters`, which is what transformers' frequency functions take for a whole model.
    """
    view = config.dense_view()
    view.rope_parameters = copy.deepcopy(config.rope_parameters_of(layer_type))
    return view


class IntraSliceRotaryEmbedding(Phi3RotaryEmbedding):
    """Rotary table of the dense head dim, computed once per forward and gathered by each layer."""

    def __init__(self, config: IntraSliceConfig, layer_type: str) -> None:
        super().__init__(config=_rope_view(config, layer_type))
        assert config.head_dim is not None  # set on construction
        self.total_pairs = config.head_dim // 2

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Cosines, then sines with the first half negated.

        The sign of `rotate_half` sits in the table, so a layer rotates with one product and one
        fused multiply-add. Pairs that partial rotary leaves alone have cosine 1 and sine 0.

        Args:
            x: hidden states; gives device and dtype.
            position_ids: (batch, sequence).

        Returns:
            (batch, sequence, 2 · head_dim).
        """
        cos, sin = super().forward(x, position_ids)
        turning = cos.shape[-1] // 2
        still = (0, self.total_pairs - turning)
        cos = F.pad(cos[..., :turning], still, value=1.0)
        sin = F.pad(sin[..., :turning], still)
        return torch.cat((cos, cos, -sin, sin), dim=-1)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (batch, groups, heads, sequence, 2 · pairs), half-split, by a signed sine."""
    first, second = states.chunk(2, dim=-1)
    return torch.addcmul(states * cos, torch.cat((second, first), dim=-1), sin)


class IntraSliceScaledEmbedding(nn.Embedding):
    """Embeddings times a factor that is rounded to their dtype first, as Gemma's are."""

    embed_scale: Tensor

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.scale = config.embedding_scale
        self.register_buffer("embed_scale", torch.tensor(self.scale), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, sequence) → (batch, sequence, hidden_size)."""
        return super().forward(input) * self.embed_scale.to(self.weight.dtype)


def _embedding(config: IntraSliceConfig) -> nn.Embedding:
    """The embedding the configuration asks for."""
    if config.embedding_scale != 1.0:
        return IntraSliceScaledEmbedding(config)
    return nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)


def _norm(config: IntraSliceConfig) -> nn.Module:
    """A norm of the residual stream."""
    if config.norm_type == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    kind = Gemma2RMSNorm if config.norm_type == "rms_plus_one" else LlamaRMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class IntraSliceHeadNorm(nn.Module):
    """RMS norm of every query or key head; each KV head has its own weights for what it kept.

    The mean is over the dense head's width, so dropping dimensions that are zero changes nothing.
    """

    def __init__(self, config: IntraSliceConfig, groups: int, width: int) -> None:
        super().__init__()
        assert config.head_dim is not None  # set on construction
        self.dense_width = config.head_dim
        self.eps = config.norm_eps
        self.plus_one = config.norm_type == "rms_plus_one"
        self.shape = (groups, 1, 1, width)
        self.weight = nn.Parameter(torch.empty(groups * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights that change nothing."""
        init.constant_(self.weight, 0.0 if self.plus_one else 1.0)

    def forward(self, heads: Tensor) -> Tensor:
        """Norm (batch, groups, heads, sequence, width), taken in float32."""
        wide = heads.float()
        mean = wide.square().sum(-1, keepdim=True) / self.dense_width
        normed = wide * torch.rsqrt(mean + self.eps)
        weight = self.weight.view(self.shape)
        if self.plus_one:
            return (normed * (1.0 + weight.float())).type_as(heads)
        return weight * normed.to(heads.dtype)


class IntraSliceAttention(nn.Module):
    """Attention with its own number of heads, query/key width and value width."""

    rotary_index: Tensor | None

    def __init__(self, config: IntraSliceConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        assert config.head_dim is not None  # set on construction
        assert config.layer_types is not None
        self.config = config  # the global one: `set_attn_implementation` changes only that
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
        self.rotary_pairs = _distinct_pairs(layer.rotary_pairs, config.head_dim // 2)
        self._add_projections(config)
        index = self.build_rotary_index() if self.rotary_pairs else None
        self.register_buffer("rotary_index", index, persistent=False)

    def _add_projections(self, config: IntraSliceConfig) -> None:
        hidden, bias = config.hidden_size, config.attention_bias
        heads, groups = self.num_heads, self.num_key_value_heads
        self.q_proj = nn.Linear(hidden, heads * self.qk_head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, groups * self.qk_head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, groups * self.v_head_dim, bias=bias)
        output_bias = config.attention_output_bias
        self.o_proj = nn.Linear(heads * self.v_head_dim, hidden, bias=output_bias)
        with_norm = config.qk_norm
        self.q_norm = IntraSliceHeadNorm(config, groups, self.qk_head_dim) if with_norm else None
        self.k_norm = IntraSliceHeadNorm(config, groups, self.qk_head_dim) if with_norm else None

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
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)

        cos, sin = self.rotary_tables(position_embeddings)
        query, key = _rotate(query, cos, sin).flatten(1, 2), _rotate(key, cos, sin).flatten(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        # Looked up and called here and by a local name: vLLM reads this source to find the call.
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        width = self._common_width(implementation, sequence)
        if width is not None:
            query, key, value = (F.pad(t, (0, width - t.shape[-1])) for t in (query, key, value))
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            softcap=self.softcap,
            **kwargs,
        )
        output = output.reshape(batch, sequence, self.num_heads, -1)[..., : self.v_head_dim]
        return self.o_proj(output.reshape(batch, sequence, -1)), weights

    def _common_width(self, implementation: str | None, queries: int) -> int | None:
        """What queries, keys and values are padded to; None: nothing. Zero columns change nothing.

        Flash kernels crop or refuse unequal widths. SDPA falls back to its plain path: measured
        3.5 times slower on a prefill of 512 tokens (CPU, float32, widths 44 and 40), but cheaper
        than padding for a single query. vLLM's caches and kernels have the dense head dim.
        """
        if implementation == "vllm":
            dense: int = self.dense_head_dim
            return dense
        if self.qk_head_dim == self.v_head_dim or implementation is None:
            return None
        if "flash" in implementation or (implementation == "sdpa" and queries > 1):
            wider: int = max(self.qk_head_dim, self.v_head_dim)
            return wider
        return None


def _distinct_pairs(text: str, total: int) -> list[list[int]] | None:
    """Kept pairs per KV head; one row if all agree; None if nothing was removed."""
    pairs = decode_rotary_pairs(text)
    if all(len(kept) == total for kept in pairs):
        return None
    return pairs[:1] if all(kept == pairs[0] for kept in pairs) else pairs


class IntraSliceMLP(nn.Module):
    """An MLP with its own width, gated or not."""

    def __init__(self, config: IntraSliceConfig, width: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, width, bias=bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(hidden, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, sequence, hidden_size) → the same."""
        inner = self.up_proj(hidden_states)
        if self.gate_proj is None:
            inner = self.act_fn(inner)
        else:
            inner = self.act_fn(self.gate_proj(hidden_states)) * inner
        output: Tensor = self.down_proj(inner)
        return output


class IntraSliceDecoderLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """A decoder layer; a module the plan removed is None and its residual passes by."""

    def __init__(self, config: IntraSliceConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        has_attention, has_mlp = layer.num_attention_heads > 0, layer.intermediate_size > 0
        self.hidden_size = config.hidden_size
        self.self_attn = IntraSliceAttention(config, layer_idx) if has_attention else None
        self.mlp = IntraSliceMLP(config, layer.intermediate_size) if has_mlp else None
        # Norms stay even without their module, so that every layer has the same names.
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = None if config.parallel_block else _norm(config)
        self.attention_output_norm = _norm(config) if config.output_norms else None
        self.mlp_output_norm = _norm(config) if config.output_norms else None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Both modules, each added to the residual stream (batch, sequence, hidden_size)."""
        if self.post_attention_layernorm is None:
            return self._forward_parallel(hidden_states, **kwargs)
        if self.self_attn is not None:
            normed = self.input_layernorm(hidden_states)
            update, _ = self.self_attn(hidden_states=normed, **kwargs)
            if self.attention_output_norm is not None:
                update = self.attention_output_norm(update)
            hidden_states = hidden_states + update
        if self.mlp is not None:
            update = self.mlp(self.post_attention_layernorm(hidden_states))
            if self.mlp_output_norm is not None:
                update = self.mlp_output_norm(update)
            hidden_states = hidden_states + update
        return hidden_states

    def _forward_parallel(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Both modules read one norm; added in the order in which Phi rounds."""
        normed = self.input_layernorm(hidden_states)
        terms: list[Tensor] = []
        if self.self_attn is not None:
            terms.append(self.self_attn(hidden_states=normed, **kwargs)[0])
        if self.mlp is not None:
            terms.append(self.mlp(normed))
        return functools.reduce(torch.add, [*terms, hidden_states])


class IntraSlicePreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What base model and language model share."""

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
        """Refuse SDPA where scores are capped: it would leave the cap out without a word.

        transformers then takes eager attention by default.
        """
        if self.config.attn_logit_softcapping is not None:
            raise ValueError(
                "sdpa cannot do attn_logit_softcapping; "
                'use attn_implementation="eager", "flex_attention" or "flash_attention_2"'
            )
        return super()._sdpa_can_dispatch(is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module; also rebuild the buffers that the meta device loses."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, Gemma2RMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, IntraSliceHeadNorm):
            module.reset_parameters()
        elif isinstance(module, IntraSliceScaledEmbedding):
            init.constant_(module.embed_scale, module.scale)
        elif isinstance(module, IntraSliceAttention) and module.rotary_index is not None:
            init.copy_(module.rotary_index, module.build_rotary_index())


_SHARED = "shared"


def _rotary_kinds(config: IntraSliceConfig) -> list[str]:
    """Keys of the rotary tables: layer types that have their own settings, or one for all."""
    kinds = [kind for kind in _MASKS if kind in (config.rope_parameters or {})]
    return [kind for kind in kinds if kind in (config.layer_types or ())] if kinds else [_SHARED]


class IntraSliceModel(IntraSlicePreTrainedModel):  # type: ignore[no-untyped-call]
    """The trunk: embedding, layers of differing shape, final norm."""

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = _embedding(config)
        self.layers = nn.ModuleList(
            IntraSliceDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = _norm(config)
        self.rotary_emb = nn.ModuleDict(
            {kind: IntraSliceRotaryEmbedding(config, kind) for kind in _rotary_kinds(config)}
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
        """Run the trunk; arguments as in transformers' decoder models.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            places = torch.arange(hidden_states.shape[1], device=hidden_states.device) + seen
            position_ids = places.unsqueeze(0)
        masks = self._masks(hidden_states, attention_mask, past_key_values, position_ids)
        tables = self._rotary_tables(hidden_states, position_ids)
        kinds = self.config.layer_types or []
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks.get(kinds[index]),
                position_embeddings=tables.get(kinds[index]),
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    def _masks(
        self,
        hidden_states: Tensor,
        mask: Tensor | dict[str, Any] | None,
        past_key_values: Cache | None,
        position_ids: Tensor,
    ) -> dict[str, Any]:
        """The mask of every layer type; `generate` may have made them already."""
        if isinstance(mask, dict):
            return mask
        kinds = self.config.layer_types or []
        return {
            kind: create(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                # Left to itself, transformers may measure a layer without attention.
                layer_idx=kinds.index(kind),
            )
            for kind, create in _MASKS.items()
            if kind in kinds
        }

    def _rotary_tables(self, hidden_states: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """The rotary table of every layer type; types with one setting share one table."""
        tables = {
            kind: rotary(hidden_states, position_ids) for kind, rotary in self.rotary_emb.items()
        }
        if _SHARED in tables:
            return dict.fromkeys(_MASKS, tables[_SHARED])
        return tables


class IntraSliceForCausalLM(IntraSlicePreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The language model over `IntraSliceModel`."""

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
        """Logits, and the loss where `labels` are given; arguments as in transformers' models."""
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
        """Start the cache anew at the length where longrope changes its frequencies.

        The keys in it were turned by the short ones.
        """
        if past_key_values is not None:
            seen = past_key_values.get_seq_length()
            if any(seen <= limit < input_ids.shape[1] for limit in self._longrope_limits()):
                past_key_values = None
                kwargs["next_sequence_length"] = None
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        return prepare(input_ids, past_key_values=past_key_values, **kwargs)

    def _longrope_limits(self) -> list[int]:
        """Lengths up to which longrope uses its short frequencies."""
        settings = [rotary.config.rope_parameters for rotary in self.model.rotary_emb.values()]
        return [
            rope["original_max_position_embeddings"]
            for rope in settings
            if rope["rope_type"] == "longrope"
        ]


__all__ = ["IntraSliceForCausalLM", "IntraSliceModel", "IntraSlicePreTrainedModel"]
