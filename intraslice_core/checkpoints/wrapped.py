"""Language models of multimodal wrappers: taken out before a compression, put back after it.

A wrapper's language model becomes a checkpoint of its own, which the engine compresses like any
other. For target `stock` the compressed language model takes the place of the dense one in the
whole wrapper, whose other tensors are copied bit by bit.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from intraslice_core.checkpoints.reader import StoredTensors, load_config
from intraslice_core.checkpoints.stored_names import stored_tensors, text_tensors
from intraslice_core.checkpoints.weight_files import (
    CONFIG_FILE,
    CONVERSION_FILE,
    read_json_object,
    weight_files,
)
from intraslice_core.checkpoints.writer import CheckpointWriter, WrittenRecord, ensure_disk_space
from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.families import FAMILIES
from intraslice_core.families.wrappers import Wrapper, text_settings, wrapper_of

_DOCUMENTS = ("README.md",)
"""Files beside the weights that the writer does not copy, and that name the licence."""
_PROCESSORS = ("processor_config.json", "*preprocessor_config.json")
"""Settings of images and videos, which the language model does not take."""
_OF_WRAPPER = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")
"""Settings of the wrapper that hold for its language model, too."""
_MROPE = ("mrope_section", "type")
"""Entries of `rope_parameters` on the positions of images."""
_OWN_SETTINGS = frozenset(
    {"architectures", "dtype", "model_type", "transformers_version", "_name_or_path"}
)
"""Settings of a checkpoint that a `text_config` does not take over."""


def extract_text_model(place: Path, out: Path, wrapper: Wrapper) -> Path:
    """Write the language model of a wrapper as a checkpoint of its family.

    Args:
        place: directory of the wrapper.
        out: the output directory; an earlier extraction in it is reused.
        wrapper: table of the wrapper.

    Returns:
        `out`.

    Raises:
        UnsupportedArchitectureError: if the language model is of no supported family.
        BrokenCheckpointError: if a file is invalid.
        InsufficientDiskError: if there is no room for the language model.
    """
    if (out / CONFIG_FILE).is_file():  # the writer renames last, so an existing one is complete
        return out
    text_type = text_settings(wrapper, read_json_object(place / CONFIG_FILE))["model_type"]
    config = _text_config(load_config(place), wrapper, text_type)
    tensors = text_tensors(stored_tensors(place), wrapper)
    ensure_disk_space(out, sum(item.entry.end - item.entry.begin for item in tensors.values()))
    with StoredTensors(place) as stored, CheckpointWriter(out) as writer:
        for name in stored.names:
            text_name = wrapper.text_name(name)
            if text_name is not None:
                writer.add({text_name: stored.tensor(name)})
        written = writer.finish(config, place)
    for pattern in _PROCESSORS:
        for file in written.glob(pattern):
            file.unlink()
    for document in _DOCUMENTS:
        if (place / document).is_file():
            shutil.copyfile(place / document, written / document)
    remarks = (*_remarks(place), *weight_files(place).warnings)
    (written / CONVERSION_FILE).write_text(json.dumps({"warnings": remarks}), encoding="utf-8")
    return written


def write_wrapper(text: Path, dense_text: Path, place: Path, out: Path) -> WrittenRecord:
    """Write a wrapper whose language model is replaced by a compressed one.

    Tensors have the names of the dense wrapper's files.

    Args:
        text: checkpoint of the compressed language model, in the dense one's architecture.
        dense_text: checkpoint of the dense language model.
        place: directory of the dense wrapper.
        out: the output directory; absent or empty.

    Returns:
        The record of what was written.

    Raises:
        BrokenCheckpointError: if the wrapper was changed since it was opened.
    """
    wrapper = wrapper_of(read_json_object(place / CONFIG_FILE))
    if wrapper is None:
        raise BrokenCheckpointError(f"{place} is no longer a multimodal model", field="model")
    config = _wrapper_config(load_config(place), load_config(dense_text), load_config(text))
    with (
        StoredTensors(place) as dense,
        StoredTensors(text) as compressed,
        CheckpointWriter(out) as writer,
    ):
        own_names = {wrapper.text_name(name): name for name in dense.names}
        prefix = own_names["model.norm.weight"].removesuffix("norm.weight")
        for name in dense.names:
            if wrapper.text_name(name) is None:
                writer.add({name: dense.tensor(name)})
        for name in compressed.names:
            # A tied matrix may be stored under the other of its two names.
            own_name = own_names.get(name, prefix + name.removeprefix("model."))
            writer.add({own_name: compressed.tensor(name)})
        writer.finish(config, place)
        return writer.record


def _text_config(config: PreTrainedConfig, wrapper: Wrapper, text_type: str) -> PreTrainedConfig:
    """Return the configuration of a wrapper's language model in its family's class.

    Raises:
        BrokenCheckpointError: if the family's class rejects a setting.
    """
    section: PreTrainedConfig = config.get_text_config()
    text = copy.deepcopy(section)
    if section.model_type != text_type:
        settings: dict[str, Any] = section.to_dict()
        rope = settings["rope_parameters"].items()
        settings["rope_parameters"] = {key: value for key, value in rope if key not in _MROPE}
        del settings["model_type"]
        try:
            text = AutoConfig.for_model(text_type, **settings)
        except Exception as error:  # transformers' validators share no exception class
            raise BrokenCheckpointError(f"config.json: {error}", field="model") from error
    for name in _OF_WRAPPER:
        if getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    for name, value in wrapper.ignored.items():
        setattr(text, name, value)
    text.tie_word_embeddings = config.tie_word_embeddings
    text.architectures = [FAMILIES[text_type].architecture]
    return _without_code(text)


def _wrapper_config(
    config: PreTrainedConfig, dense: PreTrainedConfig, compressed: PreTrainedConfig
) -> PreTrainedConfig:
    """Return the wrapper's configuration with the settings that the compression changed.

    Args:
        config: of the dense wrapper.
        dense: of the dense language model.
        compressed: of the compressed language model, of the same class.
    """
    before = dense.to_dict()
    changes = {
        name: value
        for name, value in compressed.to_dict().items()
        if name not in _OWN_SETTINGS and value != before.get(name)
    }
    section: PreTrainedConfig = config.get_text_config()
    changed = copy.deepcopy(config)
    changed.text_config = type(section)(**(section.to_dict() | changes))
    changed.tie_word_embeddings = compressed.tie_word_embeddings
    return _without_code(changed)


def _without_code(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration without references to code of the dense checkpoint."""
    if hasattr(config, "auto_map"):
        del config.auto_map
    return config


def _remarks(place: Path) -> tuple[str, ...]:
    """Return the remarks of an earlier conversion, such as a dequantisation."""
    file = place / CONVERSION_FILE
    remarks = read_json_object(file).get("warnings") if file.is_file() else None
    return tuple(map(str, remarks)) if isinstance(remarks, list) else ()
