"""Every metadata key and tensor of a GGUF file is read, or the file is rejected with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intraslice_core.checkpoints.gguf.description import GGUF_FAMILIES, describe_header
from intraslice_core.checkpoints.gguf.parts import read_gguf_header
from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.errors import BrokenCheckpointError, UnsupportedArchitectureError
from intraslice_core.families import FAMILIES
from tests.intraslice_core.checkpoints.gguf.files import tiny, write_gguf

SHAPE = "blk.0.ffn_gate_inp.weight"


def llama(file: Path, metadata: dict[str, Any], **more: Any) -> Path:
    return write_gguf(file, tiny("llama", num_hidden_layers=1), "llama", metadata, **more)


def test_every_family_but_mistral_has_a_gguf_architecture() -> None:
    types = {family.model_type for family in GGUF_FAMILIES.values()}
    assert set(FAMILIES) - types >= {"mistral"}  # its files have the architecture llama
    assert types >= {"llama", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3_text"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
        ({"attention.causal": False}, r"llama\.attention\.causal = False"),
        ({"residual_scale": 0.5}, r"llama\.residual_scale = 0\.5"),
        ({"rope.scaling.type": "ntk"}, r"llama\.rope\.scaling\.type = 'ntk'"),
        ({"rope.scaling.alpha": 50.0}, r"llama\.rope\.scaling\.alpha = 50\.0"),
        ({"feed_forward_length": [96, 64]}, r"llama\.feed_forward_length = 96 … 64"),
        ({"attention.value_length": 8}, r"llama\.attention\.value_length = not key_length 20"),
        ({"other.key": 1}, r"metadata key other\.key = 1 is unknown"),
        ({"tokenizer.ggml.new": 1}, r"metadata key tokenizer\.ggml\.new is not supported"),
        ({"general.type": "adapter"}, r"general\.type is 'adapter'"),
    ],
)
def test_unknown_setting_is_rejected_by_name(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = llama(tmp_path / "a.gguf", metadata)
    with pytest.raises(UnsupportedArchitectureError, match=message):
        convert_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.layer_norm_rms_epsilon": None}, r"layer_norm_rms_epsilon is missing"),
        ({"block_count": "three"}, r"block_count is 'three', expected an integer"),
        ({"attention.head_count": 0}, r"head_count is 0, expected a positive number"),
        ({"rope.freq_base": float("inf")}, r"freq_base is inf, expected a number"),
        ({"rope.scaling.type": "longrope"}, r"tensor rope_factors_long\.weight is missing"),
        ({"block_count": 2**31}, r"block_count is 2147483648, expected 1 to 10000"),
        ({"attention.key_length": 2**30}, r"key_length is 1073741824, expected 1 to 65536"),
    ],
)
def test_invalid_setting_is_reported_by_name(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = llama(tmp_path / "a.gguf", metadata)
    with pytest.raises(BrokenCheckpointError, match=message):
        convert_gguf(file, tmp_path / "out")


def test_values_that_say_nothing_are_accepted(tmp_path: Path) -> None:
    metadata = {"expert_count": 0, "attention.causal": True, "rope.scaling.finetuned": False}
    metadata |= {"quantize.imatrix.dataset": "text", "general.license": "mit"}
    header = read_gguf_header(llama(tmp_path / "a.gguf", metadata))
    assert describe_header(header).settings["num_hidden_layers"] == 1


def test_tensor_of_another_kind_of_layer_is_rejected(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[SHAPE] = torch.zeros(4, 64)

    header = read_gguf_header(llama(tmp_path / "a.gguf", {}, change=change))
    with pytest.raises(UnsupportedArchitectureError, match=r"tensor blk\.0\.ffn_gate_inp\.weight"):
        describe_header(header)


def test_layer_beyond_the_last_is_rejected(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["blk.1.attn_norm.weight"] = torch.zeros(64)

    header = read_gguf_header(llama(tmp_path / "a.gguf", {}, change=change))
    with pytest.raises(UnsupportedArchitectureError, match=r"tensor blk\.1\.attn_norm\.weight"):
        describe_header(header)


def test_unknown_architecture_is_rejected_with_those_that_are_read(tmp_path: Path) -> None:
    file = llama(tmp_path / "a.gguf", {})
    file.write_bytes(
        file.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba", 1)
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"architecture 'mamba'.*llama, qwen2"):
        convert_gguf(file, tmp_path / "out")
