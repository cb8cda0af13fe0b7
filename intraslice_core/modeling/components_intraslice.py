"""Components of the IntraSlice decoder: rotary embedding, token embedding and norms.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the
configuration beside it. Norms and rotary frequencies are transformers' own classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from .configuration_intraslice import IntraSliceConfig, decode_rotary_pairs

if TYPE_CHECKING:
    # `save_pretrained` copies the files that others import relatively. `auto_map` names this one.
    from .heads_intraslice import IntraSliceForSequenceClassification  # noqa: F401

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Layer types with attention."""

SHARED = "shared"
"""Key of the rotary table that layers of all types share."""

# -- rotary embedding ----------------------------------------------------------------------------


def _rope_view(config: IntraSliceConfig, layer_type: str) -> Any:
    """Return the configuration of one layer type's rotary table.

    It has no per-layer values, so that the global ones can be read, and one flat `rope_parameters`
    dict, which transformers' frequency functions expect.
    """
    view = config.dense_view()
    view.rope_parameters = copy.deepcopy(config.rope_parameters_of(layer_type))
    return view


class IntraSliceRotaryEmbedding(Phi3RotaryEmbedding):
    """Rotary table of the dense head dim, computed once per forward pass; layers gather columns."""

    def __init__(self, config: IntraSliceConfig, layer_type: str) -> None:
        super().__init__(config=_rope_view(config, layer_type))
        assert config.head_dim is not None  # set on construction
        self.total_pairs = config.head_dim // 2

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Return cosines, then sines with the first half negated.

        The sign of `rotate_half` is part of the table, so a layer rotates with one product and one
        fused multiply-add. Pairs without rotary embedding have cosine 1 and sine 0.

        Args:
            x: hidden states, which determine device and dtype.
            position_ids: positions, (batch, sequence).

        Returns:
            (batch, sequence, 2 · head_dim).
        """
        cos, sin = super().forward(x, position_ids)
        rotating = cos.shape[-1] // 2
        still = (0, self.total_pairs - rotating)
        cos = F.pad(cos[..., :rotating], still, value=1.0)
        sin = F.pad(sin[..., :rotating], still)
        return torch.cat((cos, cos, -sin, sin), dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate half-split states (batch, groups, heads, sequence, 2 · pairs) by a signed sine."""
    first, second = states.chunk(2, dim=-1)
    return torch.addcmul(states * cos, torch.cat((second, first), dim=-1), sin)


def query_scale(positions: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Return the factor on the queries by position, (batch, 1, 1, sequence, 1), float32.

    Args:
        positions: (batch, sequence).
        scaling: `query_scaling` of the configuration.
    """
    steps = torch.floor(positions / float(scaling["length"]))
    scale = 1 + float(scaling["beta"]) * torch.log(1 + steps)
    return scale[:, None, None, :, None]


def pad_heads(heads: Tensor, width: int) -> Tensor:
    """Return heads (batch, heads, sequence, dimensions), zero-padded to a width if narrower."""
    missing = width - heads.shape[-1]
    return F.pad(heads, (0, missing)) if missing > 0 else heads


def attend_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> tuple[Tensor, None]:
    """Return the SDPA of one query per sequence, in the way of an attention function.

    The query heads of a KV head become queries of one head, so that its keys are read once and not
    repeated. PyTorch's kernels for CPUs are faster by up to ten times that way.

    Args:
        query: (batch, heads, 1, dimensions).
        key: (batch, groups, length, dimensions).
        value: (batch, groups, length, dimensions); they may differ from the keys' in number.
        mask: broadcast over heads, (batch, 1, 1, length), or None.
        scaling: factor on the scores; None is the inverse root of the dimensions.
        dropout: probability.

    Returns:
        (batch, groups, heads per group, dimensions), and no weights.
    """
    packed = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
    output = F.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return output, None


def distinct_pairs(text: str, total: int) -> list[list[int]] | None:
    """Return the kept pairs per KV head, one row if all heads agree, None if none was removed."""
    pairs = decode_rotary_pairs(text)
    if all(len(kept) == total for kept in pairs):
        return None
    return pairs[:1] if all(kept == pairs[0] for kept in pairs) else pairs


def rotary_layer_types(config: IntraSliceConfig) -> list[str]:
    """Return the keys of the rotary tables: layer types with separate settings, else `SHARED`.

    A model without rotary embedding has no table.
    """
    if config.rope_layers is not None and not any(config.rope_layers):
        return []
    separate = [name for name in LAYER_TYPES if name in (config.rope_parameters or {})]
    if not separate:
        return [SHARED]
    return [name for name in separate if name in (config.layer_types or ())]


# -- masks ---------------------------------------------------------------------------------------

_MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}
"""Functions that create the attention mask of a layer type."""


def attention_masks(
    config: IntraSliceConfig,
    hidden_states: Tensor,
    mask: Tensor | dict[str, Any] | None,
    past_key_values: Cache | None,
    position_ids: Tensor,
) -> dict[str, Any]:
    """Return the mask of every layer type; `generate` may have created them already."""
    if isinstance(mask, dict):
        return mask
    layer_types = config.layer_types or []
    return {
        name: create(
            config=config,
            inputs_embeds=hidden_states,
            attention_mask=mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            # By default transformers may measure the cache of a layer without attention.
            layer_idx=layer_types.index(name),
        )
        for name, create in _MASKS.items()
        if name in layer_types
    }


# -- token embedding and norms ------------------------------------------------------------------


class IntraSliceScaledEmbedding(nn.Embedding):
    """Embeddings multiplied by a factor that is first rounded to their dtype, as in Gemma."""

    embed_scale: Tensor

    def __init__(self, config: IntraSliceConfig, width: int) -> None:
        super().__init__(config.vocab_size, width, config.pad_token_id)
        self.scale = config.embedding_scale
        self.register_buffer("embed_scale", torch.tensor(self.scale), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled embeddings of tokens, (batch, sequence, hidden_size)."""
        return super().forward(input) * self.embed_scale.to(self.weight.dtype)


def input_width(config: IntraSliceConfig) -> int:
    """Return the width of the first layer's input."""
    if not config.residual_shortcuts:
        return config.hidden_size
    width: int = config.per_layer_config[0].attention_input_size
    return width


def build_embedding(config: IntraSliceConfig) -> nn.Embedding:
    """Return the token embedding, scaled if the configuration has a scale."""
    # A tied table keeps the width of the output head.
    width = config.hidden_size if config.tie_word_embeddings else input_width(config)
    if config.embedding_scale != 1.0:
        return IntraSliceScaledEmbedding(config, width)
    return nn.Embedding(config.vocab_size, width, config.pad_token_id)


def build_embedding_shortcut(config: IntraSliceConfig) -> nn.Linear | None:
    """Return the matrix from a tied embedding to the sliced residual stream, None without one."""
    if not config.residual_shortcuts or not config.tie_word_embeddings:
        return None
    return nn.Linear(config.hidden_size, input_width(config), bias=False)


class IntraSlicePositions(nn.Embedding):
    """Table of learned positions, which are added to the embeddings."""

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__(config.position_rows, input_width(config))
        self.offset = config.position_offset

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings of positions (batch, sequence), which count from 0."""
        return super().forward((input + self.offset).clamp_min(0))


def positions_of(hidden_states: Tensor, mask: Any, cached: int) -> Tensor:
    """Return the positions of new tokens, (1 or batch, sequence).

    Learned positions count from the first token that is not padding, and padding is at -1, as in
    OPT. Rotary embedding depends on differences of positions only, so the mask may be left out.

    Args:
        hidden_states: of the new tokens, (batch, sequence, hidden_size).
        mask: 1 for tokens and 0 for padding, (batch, cached + sequence); of other forms, or if
            None, it is not used.
        cached: number of tokens in the cache.
    """
    if isinstance(mask, Tensor) and mask.dim() == 2:
        counts = mask.long()
        return (counts.cumsum(dim=1) * counts - 1)[:, cached:]
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device) + cached
    return positions.unsqueeze(0)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": LlamaRMSNorm,
    "rms_plus_one": Gemma2RMSNorm,
    "rms_float32": Olmo2RMSNorm,
    "layer": nn.LayerNorm,
    "layer_plus_one": NemotronLayerNorm1P,
    "layer_without_bias": CohereLayerNorm,
}
"""Class of each `norm_type`."""


def apply_if_present(module: nn.Module | None, hidden_states: Tensor) -> Tensor:
    """Apply a norm or shortcut that the architecture may lack."""
    return hidden_states if module is None else module(hidden_states)


def build_norm(config: IntraSliceConfig) -> nn.Module:
    """Return a norm of the hidden states, of the configured type."""
    return _NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)


class IntraSliceSlicedNorm(nn.Module):
    """RMS norm without weight of a sliced residual stream; the mean is over the dense width.

    The projections that read it contain the weight of the dense norm.
    """

    def __init__(self, config: IntraSliceConfig) -> None:
        super().__init__()
        self.dense_width = config.hidden_size
        self.eps = config.norm_eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise hidden states, (batch, sequence, width), in float32."""
        wide = hidden_states.float()
        mean = wide.square().sum(-1, keepdim=True) / self.dense_width
        return (wide * torch.rsqrt(mean + self.eps)).type_as(hidden_states)


class IntraSliceHeadNorm(nn.Module):
    """RMS norm of query or key heads, with separate weights for each KV head.

    The mean is over the dense head's width, so removing dimensions that are zero changes nothing.
    With `qk_norm_across_heads`, it is over all dense heads together, and every head has weights.

    Args:
        config: of the model.
        groups: KV heads of the layer.
        heads: heads in each of them, 1 for keys.
        width: dimensions of a head.
        dense_heads: heads of the dense model.
    """

    def __init__(
        self, config: IntraSliceConfig, groups: int, heads: int, width: int, dense_heads: int
    ) -> None:
        super().__init__()
        assert config.head_dim is not None  # set on construction
        across = config.qk_norm_across_heads
        self.dense_width = config.head_dim * (dense_heads if across else 1)
        self.summed = (1, 2, -1) if across else (-1,)
        self.eps = config.norm_eps
        self.norm_type = config.norm_type
        self.plus_one = config.norm_type == "rms_plus_one"
        self.shape = (groups, heads if across else 1, 1, width)
        self.weight = nn.Parameter(torch.empty(math.prod(self.shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the weights to the identity."""
        init.constant_(self.weight, 0.0 if self.plus_one else 1.0)

    def forward(self, heads: Tensor) -> Tensor:
        """Normalise heads (batch, groups, heads, sequence, width) in float32."""
        wide = heads.float()
        mean = wide.square().sum(self.summed, keepdim=True) / self.dense_width
        normed = wide * torch.rsqrt(mean + self.eps)
        weight = self.weight.view(self.shape)
        if self.plus_one:
            return (normed * (1.0 + weight.float())).type_as(heads)
        if self.norm_type == "rms_float32":
            return (weight * normed).type_as(heads)
        return weight * normed.to(heads.dtype)


# -- residual stream -------------------------------------------------------------------------------


class IntraSliceResidualPart(nn.Module):
    """Dimensions of the residual stream that a module reads or writes; an empty mask is of all."""

    index: Tensor | None

    def __init__(self, mask: str, stream_width: int) -> None:
        super().__init__()
        self.stream_width = stream_width
        self.dimensions = decode_rotary_pairs(mask)[0] if mask else None
        self.width = stream_width if self.dimensions is None else len(self.dimensions)
        self.register_buffer("index", self.build_index(), persistent=False)

    def build_index(self) -> Tensor | None:
        """Return the dimensions, ascending, (width,), on the CPU; None for all."""
        if self.dimensions is None:
            return None
        return torch.tensor(self.dimensions, dtype=torch.long, device="cpu")

    def reset_parameters(self) -> None:
        """Fill the index, which is lost on the meta device."""
        index = self.build_index()
        if index is not None and self.index is not None:
            init.copy_(self.index, index)

    def read(self, hidden_states: Tensor) -> Tensor:
        """Return the dimensions of hidden states, (…, stream_width) to (…, width)."""
        if self.index is None:
            return hidden_states
        return hidden_states.index_select(-1, self.index)

    def write(self, update: Tensor) -> Tensor:
        """Return an update (…, width) of all dimensions, zero in the others, (…, stream_width)."""
        if self.index is None:
            return update
        full = update.new_zeros(*update.shape[:-1], self.stream_width)
        return full.index_copy(-1, self.index, update)


# -- MLP -------------------------------------------------------------------------------------------


class IntraSliceMLP(nn.Module):
    """MLP with a per-layer width, gated or not."""

    def __init__(self, config: IntraSliceConfig, layer: Any) -> None:
        super().__init__()
        width, bias = layer.intermediate_size, config.mlp_bias
        self.reads = IntraSliceResidualPart(
            layer.mlp_reads, layer.mlp_input_size or config.hidden_size
        )
        self.writes = IntraSliceResidualPart(
            layer.mlp_writes, layer.output_size or config.hidden_size
        )
        read, written = self.reads.width, self.writes.width
        self.gate_proj = nn.Linear(read, width, bias=bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(read, width, bias=bias)
        self.down_proj = nn.Linear(width, written, bias=bias or config.mlp_output_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the MLP's output for hidden states, both (batch, sequence, hidden_size).

        Widths differ where the residual stream is sliced.
        """
        hidden_states = self.reads.read(hidden_states)
        inner = self.up_proj(hidden_states)
        if self.gate_proj is None:
            inner = self.act_fn(inner)
        else:
            inner = self.act_fn(self.gate_proj(hidden_states)) * inner
        return self.writes.write(self.down_proj(inner))


__all__ = [
    "LAYER_TYPES",
    "SHARED",
    "IntraSliceHeadNorm",
    "IntraSliceMLP",
    "IntraSlicePositions",
    "IntraSliceResidualPart",
    "IntraSliceRotaryEmbedding",
    "IntraSliceScaledEmbedding",
    "IntraSliceSlicedNorm",
    "apply_if_present",
    "attend_once",
    "attention_masks",
    "build_embedding",
    "build_embedding_shortcut",
    "build_norm",
    "distinct_pairs",
    "input_width",
    "pad_heads",
    "positions_of",
    "query_scale",
    "rotary_layer_types",
    "rotate",
]
