"""GGUF files of target `adaptive` are read back: layers of different widths or without attention.

The export itself is verified against llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.checkpoints.inspection import inspect_model
from intraslice_core.cost_model import read_dense
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_layout import GgufLayout, deci_layout
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.families.compressed_adapter import adapter_for
from intraslice_core.modeling import DeciLMConfig
from tests.intraslice_core.checkpoints.dense_logits import require_equal_logits
from tests.intraslice_core.export.models import VOCAB_SIZE, merging_tokenizer
from tests.intraslice_core.tiny_models import COMMON, save_checkpoint

WIDTHS = (64, 96, 32)
HEADS, GROUPS = "attention.head_count", "attention.head_count_kv"


def block(width: int, *, no_attention: bool = False) -> dict[str, Any]:
    return {
        "attention": {"no_op": no_attention, "n_heads_in_group": None if no_attention else 2},
        "ffn": {"no_op": False, "intermediate_size": width},
    }


def checkpoint(directory: Path, **settings: Any) -> Path:
    """Save a random result of target `adaptive` whose second layer has no attention."""
    blocks = [block(width, no_attention=layer == 1) for layer, width in enumerate(WIDTHS)]
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": max(WIDTHS)}
    config = DeciLMConfig(**(COMMON | sizes | {"head_dim": 16, "block_configs": blocks} | settings))
    torch.manual_seed(0)
    save_checkpoint(AutoModelForCausalLM.from_config(config), directory)
    merging_tokenizer().save_pretrained(directory)
    return directory


def layout_of(directory: Path) -> GgufLayout:
    config = DeciLMConfig.from_pretrained(directory)
    adapter = adapter_for(config)
    return deci_layout(adapter.canonical_settings(config), adapter.geometry(config).input_layers)


def exported(directory: Path) -> Path:
    vocabulary = read_vocabulary(directory, VOCAB_SIZE, adds_bos=False)
    write_gguf(directory / "a.gguf", directory, layout_of(directory), vocabulary, "gguf-f16")
    return directory / "a.gguf"


@pytest.mark.parametrize(
    "settings",
    [{"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}],
    ids=["tied", "biased"],
)
def test_file_of_an_adaptive_result_holds_that_result(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", **settings)
    file = exported(source)
    assert inspect_model(file).model_type == "nemotron-nas"
    back = convert_gguf(file, tmp_path / "back")
    assert read_dense(back).geometry == read_dense(source).geometry
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    actual = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32).state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name].half().float(), rtol=0.0, atol=0.0)
    require_equal_logits(back)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key_value_heads": (2, 1, 2)}, UnsupportedArchitectureError, r"head_count_kv 1 in layer"),
        ({"widths": (64, 0, 32)}, UnsupportedArchitectureError, r"a layer without MLP"),
        ({"key_value_heads": (2, 0)}, BrokenCheckpointError, r"expected 3 integers"),
    ],
)
def test_layer_of_another_form_is_rejected(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source")
    vocabulary = read_vocabulary(source, VOCAB_SIZE, adds_bos=False)
    changed = replace(layout_of(source), **changes)
    write_gguf(source / "a.gguf", source, changed, vocabulary, "gguf-f16")
    with pytest.raises(error, match=message):
        convert_gguf(source / "a.gguf", tmp_path / "back")
