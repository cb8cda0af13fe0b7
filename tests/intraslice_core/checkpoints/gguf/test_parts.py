"""Split GGUF files are read whole; a missing or foreign part is reported by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core.checkpoints.gguf.parts import read_gguf_header
from intraslice_core.checkpoints.inspection import inspect_model
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.errors import BrokenCheckpointError
from tests.intraslice_core.checkpoints.gguf.files import tiny, write_gguf

PARTS = 3


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("llama", head_dim=16, num_hidden_layers=2)


@pytest.fixture
def split(model: PreTrainedModel, tmp_path: Path) -> Path:
    """Return a directory with a model in three parts, as gguf-split names and marks them."""
    whole = write_gguf(tmp_path / "whole.gguf", model, "llama", {})
    reader = gguf.GGUFReader(whole)
    place = tmp_path / "split"
    place.mkdir()
    chunk = -(-len(reader.tensors) // PARTS)
    for part in range(PARTS):
        writer = gguf.GGUFWriter(place / f"m-{part + 1:05}-of-{PARTS:05}.gguf", "llama")
        if part == 0:
            for name, field in reader.fields.items():
                if not name.startswith(("GGUF.", "general.architecture")):
                    kind = field.types[1] if len(field.types) > 1 else None
                    writer.add_key_value(name, field.contents(), field.types[0], kind)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", PARTS)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[part * chunk : (part + 1) * chunk]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole.unlink()
    return place


@pytest.mark.parametrize("given", ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""])
def test_all_parts_are_read(
    given: str, split: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    out = open_model(str(split / given), tmp_path / "work")
    assert out.name == "m"
    back = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back[name], tensor, atol=0.0, rtol=0.0)


def test_size_is_that_of_all_parts(split: Path, model: PreTrainedModel) -> None:
    facts = inspect_model(split / "m-00001-of-00003.gguf")
    assert facts.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert facts.bytes == sum(file.stat().st_size for file in split.iterdir())


def test_missing_part_is_named(split: Path) -> None:
    (split / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"m-00002-of-00003\.gguf is missing"):
        read_gguf_header(split / "m-00001-of-00003.gguf")


def test_part_under_the_name_of_another_is_named(split: Path) -> None:
    shutil.copy(split / "m-00002-of-00003.gguf", split / "m-00003-of-00003.gguf")
    with pytest.raises(BrokenCheckpointError, match=r"m-00003-of-00003\.gguf: split\.no 1"):
        read_gguf_header(split / "m-00001-of-00003.gguf")


def test_part_of_another_model_is_detected_by_the_number_of_tensors(split: Path) -> None:
    file = split / "m-00003-of-00003.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint16("split.no", 2)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        BrokenCheckpointError, match=r"split\.tensors\.count is \d+, the parts have"
    ):
        read_gguf_header(split / "m-00001-of-00003.gguf")


def test_part_without_its_name_is_not_read_alone(split: Path) -> None:
    file = (split / "m-00001-of-00003.gguf").rename(split / "model.gguf")
    with pytest.raises(BrokenCheckpointError, match="one of 3 parts"):
        read_gguf_header(file)
