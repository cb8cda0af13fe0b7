"""Tiny random multimodal models with a tiny tokenizer, saved as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.intraslice_core.tiny_models import COMMON, tiny_tokenizer

IMAGE_TOKEN = 260
_TEXT: dict[str, Any] = {**COMMON, "vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2}
_IMAGE = {"image_token_index": IMAGE_TOKEN}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {
            **_TEXT,
            "model_type": "gemma3_text",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 7,
            "final_logit_softcapping": 0.5,  # only the text model's class reads it
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {"model_type": "siglip_vision_model", **_TOWER},
        "mm_tokens_per_image": 4,
        "boi_token_index": 261,
        "eoi_token_index": 262,
        **_IMAGE,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", "head_dim": 16, **_TOWER},
        "tie_word_embeddings": False,
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": {
            **_TEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
            },
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": 263,
        "vision_start_token_id": 261,
        "vision_end_token_id": 262,
    },
}
"""Settings of a wrapper of each kind."""


def tiny_wrapper(directory: Path, model_type: str, **changes: Any) -> Path:
    """Save a random wrapper with tokenizer and processor settings."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SETTINGS[model_type] | changes))
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_resize": True}))
    return directory


def load_wrapper(directory: Path) -> PreTrainedModel:
    """Load a whole wrapper in float32."""
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    model.train(False)
    return model


def image_inputs(model_type: str) -> dict[str, Tensor]:
    """Return a prompt with one image of four tokens."""
    prompt = torch.tensor([[5, 6, 261, *[IMAGE_TOKEN] * 4, 262, 7, 8]])
    generator = torch.Generator().manual_seed(2)
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    if model_type == "qwen2_5_vl":
        return inputs | {
            "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (prompt == IMAGE_TOKEN).int(),
        }
    inputs["pixel_values"] = torch.randn(1, 3, 16, 16, generator=generator)
    if model_type == "mistral3":
        return inputs | {"image_sizes": torch.tensor([[16, 16]])}
    return inputs | {"token_type_ids": (prompt == IMAGE_TOKEN).int()}
