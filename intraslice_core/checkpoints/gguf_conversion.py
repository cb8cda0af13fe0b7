"""Conversion of GGUF files to safetensors checkpoints, one tensor at a time.

transformers reads configuration and tokenizer. The weights are dequantised here, because
transformers may keep them packed and loads all of them at once. Quantised files become bfloat16:
its rounding error is, by estimate (not measured), about 1 % of the rms error of four-bit
quantisation, and unlike float16 it cannot overflow in the residual stream. Files of float32,
float16 or bfloat16 keep their type.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from intraslice_core.checkpoints.writer import CheckpointWriter, ensure_disk_space
from intraslice_core.config import GGUF_MODEL_TYPES
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.families.adapter import family_for

ROPE_FACTORS = "rope_freqs.weight"

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FLOAT_TYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def convert_gguf(file: Path, out: Path) -> Path:
    """Dequantise a GGUF file into a directory of safetensors with configuration and tokenizer.

    Args:
        file: the GGUF file, of architecture `llama`.
        out: the output directory; an earlier conversion in it is reused.

    Raises:
        BrokenCheckpointError: if the file cannot be read.
        UnsupportedArchitectureError: if the engine does not support the architecture.
    """
    if (out / "config.json").is_file():  # the writer renames last, so an existing one is complete
        return out
    try:
        reader = GGUFReader(file)
        config = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
    except Exception as error:  # parsers of a hostile file share no exception class
        raise BrokenCheckpointError(f"{file.name}: {error}", field="model") from error
    _require_convertible(config)
    dtype = _stored_dtype(reader)
    config.tie_word_embeddings = all(tensor.name != "output.weight" for tensor in reader.tensors)
    elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
    ensure_disk_space(out, elements * dtype.itemsize)
    with CheckpointWriter(out, dtype=dtype) as writer:
        for tensor in reader.tensors:
            if tensor.name == ROPE_FACTORS:
                _set_rope_factors(config, _dequantised(tensor))
            else:
                writer.add({_llama_name(file, tensor.name): _half_split(tensor, config)})
        with tempfile.TemporaryDirectory() as settings:
            _save_tokenizer(file, Path(settings))
            config.architectures = ["LlamaForCausalLM"]
            return writer.finish(config, Path(settings))


def _require_convertible(config: PreTrainedConfig) -> None:
    """Raise if the names and layouts of an architecture are not supported here.

    Raises:
        UnsupportedArchitectureError: with a hint to give the model as safetensors.
    """
    if config.model_type not in GGUF_MODEL_TYPES:
        raise UnsupportedArchitectureError(
            f"GGUF files of architecture {config.model_type!r} are not supported",
            field="model",
            hint="give the model as safetensors",
        )
    family_for(config)


def _stored_dtype(reader: GGUFReader) -> torch.dtype:
    """Return the most common type of the weights if it is a float type, else bfloat16."""
    weights: Counter[GGMLQuantizationType] = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type] += int(tensor.n_elements)
    return FLOAT_TYPES.get(weights.most_common(1)[0][0], torch.bfloat16)


def _llama_name(file: Path, name: str) -> str:
    """Return the name of a GGUF tensor in transformers."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    layer, _, rest = name.removeprefix("blk.").partition(".")
    module, _, kind = rest.partition(".")
    if not name.startswith("blk.") or module not in LAYER_NAMES:
        raise BrokenCheckpointError(
            f"{file.name}: tensor {name} is not part of a Llama model", field="model"
        )
    return f"model.layers.{layer}.{LAYER_NAMES[module]}.{kind}"


def _dequantised(tensor: ReaderTensor) -> Tensor:
    """Return the values in float32, in torch's (out_features, in_features) layout."""
    values = dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.copy()).reshape(*reversed([int(n) for n in tensor.shape]))


def _half_split(tensor: ReaderTensor, config: PreTrainedConfig) -> Tensor:
    """Return the values; rows of q and k go from interleaved rotary pairs to half-split heads."""
    values = _dequantised(tensor)
    module = tensor.name.split(".")[-2]
    if module not in ("attn_q", "attn_k"):
        return values
    heads = config.num_attention_heads if module == "attn_q" else config.num_key_value_heads
    pairs = values.view(heads, -1, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _set_rope_factors(config: Any, factors: Tensor) -> None:
    """Express the file's frequency divisors exactly, as `longrope` with two equal tables."""
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": config.rope_parameters["rope_theta"],
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def _save_tokenizer(file: Path, directory: Path) -> None:
    """Save tokenizer, chat template, generation settings and the licences beside the file."""
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(directory)
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(directory)
    for licence in file.parent.glob("LICENSE*"):
        shutil.copyfile(licence, directory / licence.name)
