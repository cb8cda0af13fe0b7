"""Transformers model of the `adaptive` target: Llama's modules in layers of different widths.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the
configuration beside it. The task heads are transformers' generic classes, whose constructors would
create the decoder through `AutoModel` and ask whether to trust the code that is running already.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
)

from .configuration_decilm import DeciLMConfig

_DROPOUT = 0.1
"""Dropout before the head of a token classifier, as in transformers."""


class DeciLMDecoderLayer(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """Decoder layer with a per-layer MLP width, with or without attention."""

    def __init__(self, config: DeciLMConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()
        assert config.block_configs is not None  # set on construction
        block = config.block_configs[layer_idx]
        self.hidden_size = config.hidden_size
        if block.attention.no_op:
            self.self_attn = self.input_layernorm = None  # type: ignore[assignment]
        else:
            groups = config.num_attention_heads // block.attention.n_heads_in_group
            # Attention reads its implementation from the global configuration.
            self.self_attn = LlamaAttention(config, layer_idx)
            if groups != config.num_key_value_heads:
                raise ValueError(
                    f"layer {layer_idx} has {groups} KV heads, "
                    f"expected {config.num_key_value_heads}"
                )
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        mlp_config = copy.copy(config)
        mlp_config.intermediate_size = block.ffn.intermediate_size
        self.mlp = LlamaMLP(mlp_config)  # type: ignore[no-untyped-call]
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Add the outputs of attention and MLP to hidden states (batch, sequence, hidden_size)."""
        if self.self_attn is not None:
            update, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + update
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        output: Tensor = hidden_states + update
        return output


class DeciLMModel(LlamaModel):
    """Llama's decoder over `DeciLMDecoderLayer`s, without output head."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012 (as transformers has it)
    _can_record_outputs = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_states": DeciLMDecoderLayer,
        "attentions": LlamaAttention,
    }

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            DeciLMDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.post_init()  # type: ignore[no-untyped-call]


class DeciLMForCausalLM(LlamaForCausalLM):
    """Causal language model: `DeciLMModel` with an output head."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.post_init()  # type: ignore[no-untyped-call]


class DeciLMForSequenceClassification(GenericForSequenceClassification, LlamaPreTrainedModel):
    """Sequence classifier: `DeciLMModel` with a head on the last token."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DeciLMConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        assert config.num_labels is not None  # set on construction
        self.num_labels = config.num_labels
        self.model = DeciLMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


class DeciLMForTokenClassification(GenericForTokenClassification, LlamaPreTrainedModel):
    """Token classifier: `DeciLMModel` with a head on every token."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DeciLMConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        assert config.num_labels is not None  # set on construction
        self.num_labels = config.num_labels
        self.model = DeciLMModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or _DROPOUT)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]


class DeciLMForQuestionAnswering(GenericForQuestionAnswering, LlamaPreTrainedModel):
    """Extractive question answering: `DeciLMModel` with a head for start and end."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DeciLMConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeciLMModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]


__all__ = [
    "DeciLMForCausalLM",
    "DeciLMForQuestionAnswering",
    "DeciLMForSequenceClassification",
    "DeciLMForTokenClassification",
    "DeciLMModel",
]
