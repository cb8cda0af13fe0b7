"""GGUF files of every family compute in llama.cpp what the family's own class computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import PreTrainedModel

from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.config import GgufFormat
from intraslice_core.errors import ConfigurationError
from intraslice_core.evaluation.verification import verify_gguf, write_reference
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_layout import family_layout
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.families.adapter import family_for
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.export.models import (
    VOCAB_SIZE,
    compress_to_gguf,
    config,
    load,
    logits,
    merging_tokenizer,
)
from tests.intraslice_core.tiny_models import (
    decoder_layers,
    save_checkpoint,
    tiny_family_config,
    tiny_family_model,
)

FILE = "model.gguf"
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
FULL = {"use_sliding_window": False, "sliding_window": None}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "partial_rotary_factor": 0.5,
}
ALTERNATING = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
GEMMA_ROPES = {
    "rope_parameters": {
        "full_attention": LINEAR | {"rope_theta": 50_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    }
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen2": ("qwen2", FULL, "qwen2"),
    "qwen2 with another head dim": ("qwen2", FULL | {"head_dim": 12}, "llama"),
    "qwen2 with yarn": ("qwen2", FULL | {"rope_parameters": YARN}, "llama"),
    "qwen3": ("qwen3", {"attention_bias": False}, "qwen3"),
    "qwen3 with yarn": (
        "qwen3",
        {"attention_bias": False, "rope_parameters": YARN | {"attention_factor": 1.3}},
        "qwen3",
    ),
    "qwen3 with a linear factor": (
        "qwen3",
        {"attention_bias": False, "rope_parameters": LINEAR, "tie_word_embeddings": True},
        "qwen3",
    ),
    "phi3": ("phi3", {"sliding_window": None}, "phi3"),
    "phi3 with a window beyond the context": ("phi3", {"sliding_window": 4096}, "phi3"),
    "phi3 with longrope": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 1024,
            "rope_parameters": LONGROPE,
        },
        "phi3",
    ),
    "phi": ("phi", {}, "phi2"),
    "gemma2": ("gemma2", {"head_dim": 16}, "gemma2"),
    "gemma3": ("gemma3", {"sliding_window_pattern": 6, "num_hidden_layers": 7}, "gemma3"),
    "seed_oss": ("seed_oss", {}, "seed_oss"),
    "olmo2": ("olmo2", {}, "olmo2"),
    "smollm3": (
        "smollm3",
        {"no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4, "attention_bias": False},
        "smollm3",
    ),
    "granite": ("granite", {"attention_bias": True, "mlp_bias": True}, "granite"),
    "exaone4": ("exaone4_full", {"rope_parameters": LLAMA3_ROPE}, "exaone4"),
    "glm4": ("glm4", {"head_dim": 24, "attention_bias": True}, "glm4"),
    "cohere": ("cohere", {"tie_word_embeddings": True}, "command-r"),
    "cohere2": (
        "cohere2",
        {"attention_bias": False, "sliding_window_pattern": 4, "num_hidden_layers": 5},
        "cohere2",
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}, "starcoder2"),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.25}, "stablelm"),
    "stablelm with parallel layers": ("stablelm_parallel", {}, "stablelm"),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5}, "nemotron"),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}, "gptneox"),
    "gemma3 with other layers": ("gemma3", ALTERNATING | GEMMA_ROPES, "gemma3"),
}


def family_model(variant: str, overrides: dict[str, Any]) -> PreTrainedModel:
    return tiny_family_model(variant, **(SIZES | overrides))


def write(model: PreTrainedModel, directory: Path, gguf_format: GgufFormat) -> None:
    save_checkpoint(model, directory)
    tokenizer = merging_tokenizer()
    tokenizer.save_pretrained(directory)
    layout = family_layout(family_for(model.config), model.config)
    vocabulary = read_vocabulary(directory, layout.vocab_size, adds_bos=False)
    write_gguf(directory / FILE, directory, layout, vocabulary, gguf_format)
    write_reference(directory, model, tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_the_family_computes(case: str, tmp_path: Path) -> None:
    variant, overrides, architecture = CASES[case]
    model = family_model(variant, overrides)
    write(model, tmp_path, "gguf-f16")
    fields = GGUFReader(tmp_path / FILE).fields
    assert fields["general.architecture"].contents() == architecture
    assert 0.0 < verify_gguf(tmp_path, FILE, "gguf-f16").max_abs_difference < 0.02
    back = load(convert_gguf(tmp_path / FILE, tmp_path / "back"))
    torch.testing.assert_close(logits(back), logits(model), atol=0.05, rtol=0.0)


def saved(model: PreTrainedModel, directory: Path) -> Path:
    """Save a model with a tokenizer that llama.cpp supports."""
    save_checkpoint(model, directory)
    merging_tokenizer().save_pretrained(directory)
    return directory


def test_a_compressed_model_is_verified_in_transformers_and_llama_cpp(tmp_path: Path) -> None:
    dense = saved(family_model("gemma3", GEMMA_ROPES | ALTERNATING), tmp_path / "dense")
    exports = ("safetensors", "gguf-f16", "gguf-q8_0")
    settings = config("stock", ratio=0.3, exports=exports)
    report = compress_model(str(dense), tmp_path / "out", settings)
    assert [check.files for check in report.verified] == list(exports)
    assert_cut(report)


def assert_cut(report: CompressionReport) -> None:
    """Check that neurons alone were removed."""
    assert report.plan.layers[0].qk_head_dim == report.geometry.head_dim
    assert report.plan.removed_fraction(report.geometry) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("variant", "overrides", "gguf"),
    [
        ("qwen3", {"attention_bias": False}, "gguf-f16"),
        ("phi3", {"sliding_window": None}, "gguf-q8_0"),
    ],
)
def test_compressed_models_are_verified_in_llama_cpp(
    variant: str, overrides: dict[str, Any], gguf: GgufFormat, tmp_path: Path
) -> None:
    dense = saved(family_model(variant, overrides), tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", gguf))
    assert_cut(compress_to_gguf(dense, tmp_path / "out", settings))


def test_models_of_fewer_layers_are_verified_in_llama_cpp(tmp_path: Path) -> None:
    model = family_model("gemma3", GEMMA_ROPES | ALTERNATING)
    with torch.no_grad():  # the first layer, so that windows and rotary embeddings move up
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            getattr(decoder_layers(model)[0], name).weight.fill_(-0.97)
    exports = ("safetensors", "gguf-f16")
    settings = config("stock", method="shortgpt", ratio=1 / 3, exports=exports)
    report = compress_to_gguf(saved(model, tmp_path / "dense"), tmp_path / "out", settings)
    assert report.plan.remaining == (1, 2)
    assert load(tmp_path / "out").config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("qwen3", {"attention_bias": True}, "a bias of self_attn.k_proj in architecture qwen3"),
        ("qwen3", {"attention_bias": False, "rope_parameters": LLAMA3_ROPE}, "rope_type 'llama3'"),
        ("qwen2", {}, "sliding-window attention in architecture llama"),
        ("mistral", {}, "sliding-window attention in architecture llama"),
        ("phi3", {}, "sliding-window attention in architecture phi3"),
        ("phi3", {"sliding_window": None, "head_dim": 8}, "4 heads of 8 with hidden_size 64"),
        ("gemma2", ALTERNATING, r"layer_types .* in architecture gemma2"),
        ("gemma2", {"tie_word_embeddings": False}, "an untied output head"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_act 'silu' in architecture gemma2"),
        ("gemma3_biased", {}, "a bias of self_attn.k_proj in architecture gemma3"),
        ("starcoder2_unbiased", {"sliding_window": None}, "projections without biases"),
        ("smollm3", {"attention_bias": False}, "layers without rotary embedding like these"),
        ("cohere", {}, "an untied output head in architecture command-r"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' in architecture llama"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_rejected(
    variant: str, overrides: dict[str, Any], message: str
) -> None:
    model_config = tiny_family_config(variant, **(SIZES | overrides))
    with pytest.raises(ConfigurationError, match=f"GGUF export does not support {message}") as no:
        family_layout(family_for(model_config), model_config)
    assert no.value.field == "compression.exports"


def test_windows_are_rejected_before_the_compression(tmp_path: Path) -> None:
    save_checkpoint(family_model("mistral", {}), tmp_path / "dense")
    settings = config("stock", ratio=0.3, exports=("safetensors", "gguf-f16"))
    with pytest.raises(ConfigurationError, match="does not support sliding-window attention"):
        compress_model(str(tmp_path / "dense"), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
