"""Inputs that are not a model of safetensors get an error that names them and says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intraslice_core.checkpoints.inspection import inspect_model
from intraslice_core.checkpoints.locations import located
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.cost_model import read_dense
from intraslice_core.errors import (
    BrokenCheckpointError,
    ModelError,
    ModelNotFoundError,
    UnsupportedFormatError,
)
from tests.intraslice_core.tiny_models import tiny_llama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98304\n"


def message(read: Callable[[Path], object], place: Path, error: type[ModelError]) -> str:
    with pytest.raises(error) as caught:
        read(place)
    return str(caught.value)


@pytest.mark.parametrize("whole_model", [True, False])
def test_adapter_is_to_be_merged_into_its_base(tmp_path: Path, whole_model: bool) -> None:
    if whole_model:
        tiny_llama(tmp_path)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    for read in (inspect_model, read_dense):
        text = message(read, tmp_path, UnsupportedFormatError)
        assert "LORA adapter of meta-llama/Llama-3.2-1B" in text
        assert "merge it into its base first" in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    directory = tiny_llama(tmp_path / "model")
    (directory / name).write_bytes(POINTER)
    text = message(inspect_model, directory, BrokenCheckpointError)
    assert f"{name} is a git-lfs pointer" in text
    assert f"git lfs pull` in {directory}" in text


def test_gguf_file_that_is_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "model-Q8_0.gguf").write_bytes(POINTER)
    assert "git lfs pull" in message(
        inspect_model, tmp_path / "model-Q8_0.gguf", BrokenCheckpointError
    )


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["consolidated.safetensors"], "Mistral's own format"),
        (["model.fp16.safetensors"], "rename a whole model to model.safetensors"),
        (["model-00001-of-00002.safetensors"], "index"),
        (["pytorch_model.bin"], "pickle weights"),
        (["flax_model.msgpack"], "Flax weights"),
        (["tf_model.h5"], "TensorFlow weights"),
        ([], "model.safetensors is missing"),
    ],
)
def test_directory_without_the_models_weights_says_what_it_holds(
    tmp_path: Path, names: list[str], advice: str
) -> None:
    directory = tiny_llama(tmp_path)
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    for name in names:
        (directory / name).write_bytes(content)
    assert advice in message(inspect_model, directory, BrokenCheckpointError)


@pytest.mark.parametrize("reference", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B@main"])
def test_name_of_a_hub_repository_is_recognised(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"did you mean hub:{reference}"):
        open_model(reference, tmp_path)


@pytest.mark.parametrize(
    ("address", "reference"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "hub:Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "hub:Qwen/Qwen3-0.6B@main"),
        ("hf.co/Qwen/Qwen3-0.6B/", "hub:Qwen/Qwen3-0.6B"),
    ],
)
def test_address_of_a_hub_repository_is_recognised(
    tmp_path: Path, address: str, reference: str
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        open_model(address, tmp_path)
    assert caught.value.hint == f"did you mean {reference}?"


@pytest.mark.parametrize(
    "reference",
    ["/data/model", "models/org/name", "model", "../a/b", "https://example.com/a/b"],
)
def test_other_missing_paths_get_no_suggestion(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist") as caught:
        open_model(reference, tmp_path)
    assert caught.value.hint is None


@pytest.mark.parametrize(
    "names",
    [["a.gguf"], ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"]],
)
def test_directory_of_one_gguf_model_is_that_model(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert located(tmp_path) == tmp_path / names[0]


def test_directory_of_several_gguf_models_lists_them(tmp_path: Path) -> None:
    for name in ("a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    for read in (located, read_dense, lambda place: open_model(str(place), tmp_path)):
        text = message(read, tmp_path, ModelNotFoundError)
        assert "2 GGUF models: a-Q4_K_M.gguf, a-Q8_0-00001-of-00002.gguf (give the path" in text


def test_gguf_files_beside_a_model_of_safetensors_are_not_taken(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    (directory / "model-f16.gguf").touch()
    assert located(directory) == directory


def test_hub_repository_without_safetensors_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UnsupportedFormatError, match=r"holds no safetensors.*\.gguf"):
        open_model("hub:org/name-GGUF", tmp_path)
