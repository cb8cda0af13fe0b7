"""Tiny random models with a tiny tokenizer, saved as real checkpoints without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 259
"""256 bytes and three special tokens."""

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "multi_head": {"num_key_value_heads": 4},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "llama3_rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
"""Overrides of the Llama family that use different parts of the engine."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "partial_rotary_factor": 0.67,
}

FAMILY_VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 20},
    "llama_dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 7, "head_dim": 16},
    "qwen2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 20, "attention_bias": True},
    "phi": {"model_type": "phi", "num_key_value_heads": 4},
    "phi_grouped": {"model_type": "phi", "partial_rotary_factor": 0.34},
    "phi3": {"model_type": "phi3", "sliding_window": 9},
    "phi3_longrope": {
        "model_type": "phi3",
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_parameters": LONGROPE,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 20,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 24,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 10,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_biased": {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "cohere2": {
        "model_type": "cohere2",
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "attention_bias": True,
        "logit_scale": 0.25,
    },
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.34},
    "nemotron": {
        "model_type": "nemotron",
        "head_dim": 16,
        "mlp_bias": True,
        "attention_bias": True,
    },
    "opt": {"model_type": "opt", "ffn_dim": 64, "max_position_embeddings": 1024},
    "stablelm": {"model_type": "stablelm", "partial_rotary_factor": 0.34},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 7},
    "exaone4": {
        "model_type": "exaone4",
        "head_dim": 16,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "glm4": {"model_type": "glm4", "head_dim": 16},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.15,
        "logits_scaling": 4.0,
    },
    "ministral3": {
        "model_type": "ministral3",
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.5,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
    },
    "olmo2": {"model_type": "olmo2"},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 20},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [0, 0, 1], "attention_bias": True},
}
"""Variants of every family with the features of its adapter: head dims, windows, caps, RoPE."""


FORWARD_VARIANTS: dict[str, dict[str, Any]] = {
    "cohere": {"model_type": "cohere", "tie_word_embeddings": False, "logit_scale": 4.0},
    "gpt_neox_sequential": {
        "model_type": "gpt_neox",
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "opt_unbiased": {
        "model_type": "opt",
        "ffn_dim": 64,
        "enable_bias": False,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
    "stablelm_parallel": {
        "model_type": "stablelm",
        "partial_rotary_factor": 0.5,
        "use_parallel_residual": True,
        "use_qkv_bias": True,
        "num_key_value_heads": 4,
    },
    "starcoder2_unbiased": {"model_type": "starcoder2", "use_bias": False},
    "exaone4_full": {
        "model_type": "exaone4",
        "sliding_window": None,
        "layer_types": ["full_attention"] * 3,
    },
    "glm": {"model_type": "glm", "head_dim": 12, "partial_rotary_factor": 1.0},
    "granite4": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "mamba_n_heads": 8,
        "shared_intermediate_size": 64,
        "layer_types": ["attention"] * 3,
        "position_embedding_type": "rope",
        "embedding_multiplier": 12,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
        "logits_scaling": 10,
    },
    "granite4_without_rope": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "mamba_n_heads": 8,
        "shared_intermediate_size": 64,
        "layer_types": ["attention"] * 3,
    },
    "ministral3_window": {"model_type": "ministral3", "head_dim": 16, "sliding_window": 7},
    "olmo2_biased": {"model_type": "olmo2", "attention_bias": True, "num_key_value_heads": 4},
    "olmo3": {
        "model_type": "olmo3",
        "sliding_window": 6,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "smollm3_window": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 6,
        "no_rope_layer_interval": 2,
    },
}
"""More variants, for the tests of forward passes, names and shapes only."""


def tiny_tokenizer(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte; `adds_bos` puts `<s>`, token 0, before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_config(**overrides: Any) -> LlamaConfig:
    """Return a Llama configuration: grouped-query attention, 4 heads of 16, 3 layers."""
    return LlamaConfig(**(COMMON | {"head_dim": 16, "tie_word_embeddings": True} | overrides))


def tiny_model(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Return a random Llama in float32, biases included."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
    return model


def tiny_family_config(variant: str, **overrides: Any) -> PreTrainedConfig:
    """Return a family's own configuration with tiny sizes."""
    settings = COMMON | (FAMILY_VARIANTS | FORWARD_VARIANTS)[variant] | overrides
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def tiny_family_model(variant: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random model of the family's own class in float32, norms and biases included."""
    torch.manual_seed(seed)
    config = tiny_family_config(variant, **overrides)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def decoder_layers(model: PreTrainedModel) -> Any:
    """Return the decoder layers of a model of any family."""
    return getattr(model.base_model, "decoder", model.base_model).layers


def save_checkpoint(model: PreTrainedModel, directory: Path, *, adds_bos: bool = False) -> Path:
    """Save model, tokenizer and generation settings like a user's checkpoint."""
    model.save_pretrained(directory)
    tiny_tokenizer(adds_bos=adds_bos).save_pretrained(directory)
    GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2).save_pretrained(directory)
    return directory


def tiny_llama(directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny random Llama checkpoint in `directory`."""
    return save_checkpoint(tiny_model(seed, **overrides), directory)


def tiny_checkpoint(directory: Path, variant: str, *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny random checkpoint of a family in `directory`."""
    return save_checkpoint(tiny_family_model(variant, seed, **overrides), directory)
