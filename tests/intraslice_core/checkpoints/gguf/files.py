"""GGUF files of tiny models, with the metadata and layouts of llama.cpp's converter.

Names of tensors come from the gguf package, not from our tables. `conversion/*.py` of llama.cpp
b11549 is the model of what is written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.intraslice_core.export.models import merging_tokenizer
from tests.intraslice_core.tiny_models import tiny_family_model

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi": gguf.MODEL_ARCH.PHI2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "glm": gguf.MODEL_ARCH.CHATGLM,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
    "cohere2": gguf.MODEL_ARCH.COHERE2,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
    "nemotron": gguf.MODEL_ARCH.NEMOTRON,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
}
_INTERLEAVED = tuple(ARCHITECTURES[name] for name in ("llama", "smollm3", "granite", "ministral3"))
_NORMS_PLUS_ONE = tuple(ARCHITECTURES[name] for name in ("gemma2", "gemma3", "nemotron"))
_WITHOUT_HEAD_SIZE = ("phi3", "chatglm", "stablelm", "gptneox", "granite")
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
"""Sizes whose rows are multiples of the 8-bit quantisation's block."""

Metadata = Mapping[str, Any]


def tiny(variant: str, **settings: Any) -> PreTrainedModel:
    """Return a tiny random model with the vocabulary of `merging_tokenizer`."""
    return tiny_family_model(variant, **(SIZES | settings))


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    architecture: str,
    metadata: Metadata,
    *,
    tables: Mapping[str, list[float]] | None = None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    change: Callable[[dict[str, Tensor]], None] | None = None,
) -> Path:
    """Write a model as llama.cpp's converter does.

    Args:
        file: the output file.
        model: tiny model of the architecture's class.
        architecture: key of `ARCHITECTURES`.
        metadata: keys without prefix, beyond the sizes; None removes a key.
        tables: rotary tables by name.
        quantization: type of matrices.
        tokenizer: byte-level tokenizer; by default a few merges.
        change: called with the tensors by llama.cpp's names before they are written.
    """
    kind = ARCHITECTURES[architecture]
    prefix = gguf.MODEL_ARCH_NAMES[kind]
    writer = gguf.GGUFWriter(file, prefix)
    for key, value in (_sizes(model, prefix) | metadata).items():
        if value is not None:
            _add(
                writer,
                key if "." in key and key.split(".")[0] in _FULL else f"{prefix}.{key}",
                value,
            )
    write_vocabulary(writer, tokenizer or merging_tokenizer(), model.config.vocab_size)
    tensors = converted(model, kind)
    tensors |= {name: torch.tensor(table) for name, table in (tables or {}).items()}
    if change is not None:
        change(tensors)
    for name, tensor in tensors.items():
        values = tensor.numpy().astype(np.float32)
        if values.ndim > 1 and quantization != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(name, packed, raw_dtype=quantization)
        else:
            writer.add_tensor(name, values)
    return finish(writer, file)


_FULL = ("general", "tokenizer", "quantize", "other")
"""Prefixes of keys that do not belong to the architecture."""


def finish(writer: gguf.GGUFWriter, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _sizes(model: PreTrainedModel, prefix: str) -> dict[str, Any]:
    """Return the keys that the converter writes for every architecture."""
    config = model.config
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "general.name": "tiny",
        "general.file_type": 0,
    }
    head_dim = getattr(config, "head_dim", None)
    for name in ("rms_norm_eps", "norm_eps"):
        if hasattr(config, name):
            sizes["attention.layer_norm_rms_epsilon"] = getattr(config, name)
    for name in ("layer_norm_eps", "norm_epsilon", "norm_eps"):
        if hasattr(config, name):
            sizes["attention.layer_norm_epsilon"] = getattr(config, name)
    if head_dim and prefix not in _WITHOUT_HEAD_SIZE:
        sizes |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    return sizes


def converted(model: PreTrainedModel, kind: gguf.MODEL_ARCH) -> dict[str, Tensor]:
    """Return the tensors under llama.cpp's names, in llama.cpp's layouts."""
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tensors = {}
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, name
        tensor = value.detach().float()
        if kind in _INTERLEAVED and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads
            heads = heads if "q_proj" in name else model.config.num_key_value_heads
            halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if kind in _NORMS_PLUS_ONE and name.endswith("norm.weight"):
            tensor = tensor + 1
        if "query_key_value" in name:  # rows by head to rows by part
            heads = tensor.reshape(model.config.num_attention_heads, 3, -1, *tensor.shape[1:])
            tensor = heads.swapaxes(0, 1).reshape(tensor.shape)
        tensors[gguf_name] = tensor.contiguous()
    return tensors


def write_vocabulary(
    writer: gguf.GGUFWriter,
    tokenizer: PreTrainedTokenizerFast,
    rows: int,
    *,
    pre: str = "gpt-2",
) -> None:
    """Write a byte-level vocabulary; rows without a token are unused."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {number: text for text, number in tokenizer.get_vocab().items()}
    special = {token["id"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(
        [3 if number in special else 1 if number in tokens else 5 for number in range(rows)]
    )
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


# -- llama.cpp -----------------------------------------------------------------------------------

_PROGRAM = Path(__file__).with_name("llama_cpp_answers.py")


def llama_cpp(questions: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """Return llama.cpp's answers to questions on several files, from one clean process.

    Args:
        questions: `file`, and lists of token ids in `prompts` and of strings in `texts`.
        directory: place for the files that pass between the processes.
    """
    asked, answered = directory / "questions.json", directory / "answers.json"
    asked.write_text(json.dumps(questions, default=str))
    process = subprocess.run(
        [sys.executable, str(_PROGRAM), str(asked), str(answered)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(answered.read_text())
    return answers
