"""Tensors that the reader returns, and checkpoints that it rejects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from intraslice_core.checkpoints.reader import CheckpointReader, check_finite
from intraslice_core.errors import (
    BrokenCheckpointError,
    NonFiniteWeightError,
    UnsupportedArchitectureError,
)
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def rewrite_header(file: Path, change: Callable[[dict], None]) -> None:
    """Apply `change` to the header of a safetensors file, leaving the data."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_tensors_come_as_they_were_stored(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    with CheckpointReader(save_checkpoint(model, tmp_path)) as reader:
        stored = dict(model.named_parameters())
        assert set(reader.names) == set(stored)
        assert reader.bytes_total == 2 * model.num_parameters()
        for name, tensor in stored.items():
            assert torch.equal(reader.tensor(name), tensor)
        layer = reader.tensors("model.layers.1.")
    assert torch.equal(layer["mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"])
    assert len(layer) == 9


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with CheckpointReader(tmp_path) as reader:
        for name, tensor in model.named_parameters():
            assert torch.equal(reader.tensor(name), tensor)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(BrokenCheckpointError, match=f"{lost.name} is missing"):
        CheckpointReader(tmp_path)


def test_index_that_points_outside_is_rejected(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(BrokenCheckpointError, match="points outside"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file_is_rejected(checkpoint: Path, keep: int) -> None:
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BrokenCheckpointError, match=WEIGHTS):
        CheckpointReader(checkpoint)


def test_header_bomb_is_rejected_without_being_read(checkpoint: Path) -> None:
    with (checkpoint / WEIGHTS).open("wb") as stream:
        stream.write((2**31).to_bytes(8, "little"))
        stream.truncate(2**31 + 64)  # sparse
    with pytest.raises(BrokenCheckpointError, match="not plausible"):
        CheckpointReader(checkpoint)


def set_offsets(begin: int, end: int) -> Callable[[dict], None]:
    def change(header: dict) -> None:
        header["model.norm.weight"]["data_offsets"] = [begin, end]

    return change


def set_value(key: str, value: object) -> Callable[[dict], None]:
    def change(header: dict) -> None:
        header["model.norm.weight"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_offsets(0, 192), "overlaps"),
        (set_offsets(10**9, 10**9 + 192), "hole"),
        (set_offsets(0, 100), "contradict shape"),
        (set_offsets(-192, 0), "not a natural number"),
        (set_value("dtype", "F99"), "is malformed"),
        (set_value("shape", [-48]), "not a natural number"),
        (set_value("shape", "48"), "not a natural number"),
        (set_value("data_offsets", [1]), "is malformed"),
    ],
)
def test_invalid_header_is_rejected(
    checkpoint: Path, change: Callable[[dict], None], complaint: str
) -> None:
    rewrite_header(checkpoint / WEIGHTS, change)
    with pytest.raises(BrokenCheckpointError, match=complaint):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize("header", [b"{", b"[]", b"[" * 100_000])
def test_header_that_is_no_object_is_rejected(checkpoint: Path, header: bytes) -> None:
    (checkpoint / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BrokenCheckpointError, match="JSON"):
        CheckpointReader(checkpoint)


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(BrokenCheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight is missing"):
        CheckpointReader(checkpoint)


def test_shape_that_contradicts_the_configuration_is_rejected(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 72}))
    with pytest.raises(BrokenCheckpointError, match=r"config\.json says \[72, 48\]|\[48, 72\]"):
        CheckpointReader(checkpoint)


def test_integer_weights_are_rejected(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(BrokenCheckpointError, match="stored as I8"):
        CheckpointReader(checkpoint)


def test_pickles_are_rejected(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(BrokenCheckpointError, match="pickle"):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model_type": "llama", "hidden_size": "x"}'])
def test_broken_configuration_is_rejected(checkpoint: Path, text: str | None) -> None:
    (checkpoint / "config.json").unlink()
    if text is not None:
        (checkpoint / "config.json").write_text(text)
    with pytest.raises(BrokenCheckpointError, match=r"config\.json"):
        CheckpointReader(checkpoint)


def test_other_architecture_is_rejected(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitectureError, match="supported: llama"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_weight_is_named(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    assert check_finite("fine", tensor) is tensor
    tensor[1, 2] = value
    with pytest.raises(NonFiniteWeightError, match="the_name"):
        check_finite("the_name", tensor)


def test_impossible_number_of_layers_is_rejected_without_enumerating_them(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    changed = config | {"num_hidden_layers": 10**12}
    (checkpoint / "config.json").write_text(json.dumps(changed))
    with pytest.raises(BrokenCheckpointError, match="1000000000000 layers"):
        CheckpointReader(checkpoint)
