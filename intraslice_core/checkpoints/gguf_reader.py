"""Conversion of GGUF files to safetensors checkpoints, one tensor at a time.

Configuration and tokenizer are derived from the metadata here, because transformers' own reader
drops keys that it has no name for. Quantised files become bfloat16: its rounding error is, by
estimate (not measured), about 1 % of the rms error of four-bit quantisation, and unlike float16 it
cannot overflow in the residual stream. Files of float32, float16 or bfloat16 keep their type.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from intraslice_core.checkpoints.gguf.description import GgufModel, describe_gguf
from intraslice_core.checkpoints.gguf.header import GgufHeader
from intraslice_core.checkpoints.gguf.parts import read_gguf_header
from intraslice_core.checkpoints.gguf.tensors import (
    assembled,
    plan_tensors,
    stored_dtype,
    table_values,
)
from intraslice_core.checkpoints.gguf.tokenizer import SpecialTokens, save_tokenizer, special_tokens
from intraslice_core.checkpoints.gguf.vocabulary import Vocabulary, read_vocabulary
from intraslice_core.checkpoints.writer import CheckpointWriter, ensure_disk_space
from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.families.compressed_adapter import adapter_for


def convert_gguf(file: Path, out: Path) -> Path:
    """Dequantise a GGUF model into a directory of safetensors with configuration and tokenizer.

    Settings, tensors and vocabulary are checked before the first tensor is written.

    Args:
        file: the GGUF file, or any part of a split model.
        out: the output directory; an earlier conversion in it is reused.

    Raises:
        BrokenCheckpointError: if the file cannot be read.
        UnsupportedArchitectureError: if the engine does not support the architecture, or a
            setting, tensor or tokenizer in the file.
    """
    if (out / "config.json").is_file():  # the writer renames last, so an existing one is complete
        return out
    header = read_gguf_header(file)
    model = describe_gguf(header, partial(table_values, header))
    vocabulary = read_vocabulary(header, rows=model.settings["vocab_size"])
    special = special_tokens(vocabulary)
    config = _config(header, model, special)
    adapter = adapter_for(config)
    plan = plan_tensors(header, model, adapter, config)
    dtype = stored_dtype(header)
    config.dtype = dtype
    ensure_disk_space(out, header.parameters * dtype.itemsize)
    with CheckpointWriter(out, dtype=dtype) as writer:
        for name, pieces in plan.items():
            writer.add({name: assembled(header, pieces)})
        with tempfile.TemporaryDirectory() as settings:
            _save_companions(file, Path(settings), vocabulary, special)
            return writer.finish(config, Path(settings))


def _config(header: GgufHeader, model: GgufModel, special: SpecialTokens) -> PreTrainedConfig:
    """Return transformers' configuration of the model.

    Raises:
        BrokenCheckpointError: if the configuration class rejects a setting.
    """
    settings = dict(model.settings)
    settings |= {"bos_token_id": special.bos, "pad_token_id": special.pad}
    settings["eos_token_id"] = special.ends[0] if special.ends else None
    try:
        config: PreTrainedConfig = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except Exception as error:  # the classes' validators share no exception class
        reason = str(error).strip().splitlines()
        raise BrokenCheckpointError(
            f"{header.name}: the settings are invalid: {reason[-1] if reason else error!r}",
            field="model",
        ) from error
    config.architectures = [adapter_for(config).architecture]
    return config


def _save_companions(
    file: Path, directory: Path, vocabulary: Vocabulary, special: SpecialTokens
) -> None:
    """Save tokenizer, chat template, generation settings and the licences beside the file."""
    save_tokenizer(vocabulary, special, directory)
    for licence in file.parent.glob("LICENSE*"):
        shutil.copyfile(licence, directory / licence.name)
