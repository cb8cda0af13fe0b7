"""The engine reads from a directory what transformers loads from it, whatever is odd about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from intraslice_core import modeling
from intraslice_core.checkpoints.inspection import inspect_model
from intraslice_core.checkpoints.manifest import model_fingerprint
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.weight_files import weight_bytes
from intraslice_core.config import CalibrationConfig, CompressionConfig, Target
from intraslice_core.cost_model import read_dense
from intraslice_core.errors import BrokenCheckpointError
from intraslice_core.plan import dense_parameters
from tests.intraslice_core.checkpoints.dense_logits import (
    WEIGHTS,
    change_settings,
    change_weights,
    require_equal_logits,
)
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_checkpoint, tiny_llama, tiny_model

INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def warnings_of(directory: Path) -> tuple[str, ...]:
    with CheckpointReader(directory) as reader:
        return reader.warnings


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    """Return a change that replaces a prefix of names."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


def add(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    """Return a change that adds a random tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.randn(shape, generator=torch.Generator().manual_seed(7))

    return change


def remove(name: str) -> Callable[[dict[str, Tensor]], None]:
    """Return a change that removes a tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def move_embedding_to_head(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)


def copy_embedding_to_head(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def store_norms_in_half(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name].half()


ODDITIES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str | None]] = {
    "base_model_without_prefix": (rename("model.", ""), None),
    "prefix_twice": (rename("model.", "model.model."), None),
    "different_head": (add(HEAD, 259, 48), "tie_word_embeddings"),
    "equal_head": (copy_embedding_to_head, None),
    "head_instead_of_embedding": (move_embedding_to_head, None),
    "rotary_buffers": (add("model.layers.0.self_attn.rotary_emb.inv_freq", 8), None),
    "unused_bias": (add("model.layers.1.self_attn.q_proj.bias", 64), "q_proj.bias"),
    "unused_layers": (
        rename("model.layers.2.", "model.layers.7."),
        "layers 7 to 7 are not used",
    ),
    "mixed_dtypes": (store_norms_in_half, None),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_tensors_are_those_that_transformers_loads(tmp_path: Path, oddity: str) -> None:
    directory = tiny_llama(tmp_path / "model")
    change, warning = ODDITIES[oddity]
    change_weights(directory, change)
    if oddity == "unused_layers":
        change_settings(directory, num_hidden_layers=2)
    require_equal_logits(directory)
    remarks = warnings_of(directory)
    assert remarks == () if warning is None else warning in " ".join(remarks)


@pytest.mark.parametrize("variant", ["qwen2", "phi", "phi3", "gemma2", "gemma3"])
def test_tied_head_with_other_values_is_kept_in_every_family(tmp_path: Path, variant: str) -> None:
    directory = tiny_checkpoint(tmp_path / "model", variant, tie_word_embeddings=True)
    change_weights(directory, add(HEAD, 259, 48))
    require_equal_logits(directory)
    assert len(warnings_of(directory)) == 1


@pytest.mark.parametrize("separate", [False, True])
def test_estimate_counts_the_head_that_is_compressed(tmp_path: Path, separate: bool) -> None:
    directory = tiny_llama(tmp_path / "model")
    change_weights(directory, add(HEAD, 259, 48) if separate else copy_embedding_to_head)
    with CheckpointReader(directory) as reader:
        geometry = reader.family.geometry(reader.config)
        assert reader.bytes_total == 4 * dense_parameters(geometry)
    assert read_dense(directory).geometry == geometry
    assert geometry.tie_word_embeddings is not separate
    if separate:
        assert inspect_model(directory).parameters == dense_parameters(geometry)


@pytest.mark.parametrize("target", ["research", "stock"])
def test_separate_head_of_a_tied_model_survives_the_compression(
    tmp_path: Path, target: Target
) -> None:
    directory, out = tiny_llama(tmp_path / "model"), tmp_path / "out"
    change_weights(directory, add(HEAD, 259, 48))
    calibration = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)
    config = CompressionConfig(ratio=0.2, target=target, round_to=2, calibration=calibration)
    report = compress_unverified(directory, out, config)
    assert torch.equal(load_file(out / WEIGHTS)[HEAD], load_file(directory / WEIGHTS)[HEAD])
    assert "tie_word_embeddings" in " ".join(report.warnings)
    modeling.register()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert not loaded.config.tie_word_embeddings
    assert loaded.num_parameters() == report.params_after
    assert report.params_before == 259 * 48 + sum(p.numel() for p in tiny_model().parameters())


def add_stale_index(directory: Path) -> None:
    """Put another model's shards and their index beside model.safetensors."""
    other = tiny_model(seed=1)
    other.save_pretrained(directory / "other", max_shard_size="60KB")
    for file in (directory / "other").glob("model*"):
        shutil.move(file, directory / file.name)
    shutil.rmtree(directory / "other")


@pytest.mark.parametrize("shards", ["complete", "missing", "broken"])
def test_whole_file_comes_before_a_stale_index(tmp_path: Path, shards: str) -> None:
    whole, directory = tiny_llama(tmp_path / "whole"), tiny_llama(tmp_path / "model")
    add_stale_index(directory)
    if shards != "complete":
        for file in directory.glob("model-*.safetensors"):
            file.unlink()
    if shards == "broken":
        (directory / INDEX).write_text("[")
    require_equal_logits(directory)
    assert INDEX in " ".join(warnings_of(directory))
    assert inspect_model(directory) == inspect_model(whole)
    assert weight_bytes(directory) == weight_bytes(whole)
    assert model_fingerprint(directory) == model_fingerprint(whole)


def test_index_of_the_whole_file_is_not_stale(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    names = load_file(directory / WEIGHTS)
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))
    assert warnings_of(directory) == ()


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors"])
def test_other_weights_beside_the_model_are_not_read(tmp_path: Path, name: str) -> None:
    directory = tiny_llama(tmp_path / "model")
    save_file({"tok_embeddings.weight": torch.ones(3, 4)}, directory / name)
    require_equal_logits(directory)
    assert warnings_of(directory) == ()


def test_file_named_by_the_configuration_comes_first(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / WEIGHTS, directory / "chosen.safetensors")
    change_settings(directory, transformers_weights="chosen.safetensors")
    require_equal_logits(directory)
    with CheckpointReader(directory) as reader:
        assert torch.equal(
            reader.tensor(EMBEDDING), load_file(tmp_path / "other" / WEIGHTS)[EMBEDDING]
        )


@pytest.mark.parametrize("missing", [HEAD, "model.layers.1.mlp.up_proj.weight"])
def test_weight_that_transformers_draws_at_random_is_an_error(tmp_path: Path, missing: str) -> None:
    directory = tiny_llama(tmp_path / "model", tie_word_embeddings=False)
    change_weights(directory, remove(missing))
    with pytest.raises(BrokenCheckpointError, match="is missing") as caught:
        CheckpointReader(directory)
    assert missing in str(caught.value)
    assert "at random" in str(caught.value)


def test_tensor_stored_under_two_names_is_an_error(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    change_weights(directory, add("norm.weight", 48))
    with pytest.raises(BrokenCheckpointError, match="stored twice"):
        CheckpointReader(directory)


DTYPES: tuple[dict[str, Any], ...] = (
    {"dtype": "bfloat16"},
    {"torch_dtype": "float16", "dtype": None},
    {"dtype": None},
)


@pytest.mark.parametrize("settings", DTYPES)
def test_data_type_is_the_one_transformers_loads(tmp_path: Path, settings: dict[str, Any]) -> None:
    directory = tiny_llama(tmp_path / "model")
    change_settings(directory, **settings)
    expected = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").dtype
    with CheckpointReader(directory) as reader:
        assert reader.dtype == expected
        assert reader.tensor(EMBEDDING).dtype == torch.float32
    assert read_dense(directory).item_bytes == expected.itemsize


ROPE_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("llama", {"rope_theta": 500.0}),
    "linear_by_type": (
        "llama",
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "dynamic": (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
    ),
    "yarn": (
        "qwen2",
        {
            "rope_theta": 700.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "longrope_by_type": (
        "phi3",
        {
            "rope_theta": 700.0,
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
            },
        },
    ),
    "partial_factor_beside": ("phi", {"rope_theta": 500.0, "partial_rotary_factor": 0.34}),
    "gemma3_two_thetas": (
        "gemma3",
        {
            "rope_theta": 900.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


@pytest.mark.parametrize("style", ROPE_STYLES)
def test_old_rotary_settings_give_equal_logits(tmp_path: Path, style: str) -> None:
    variant, settings = ROPE_STYLES[style]
    directory = tiny_checkpoint(tmp_path / "model", variant)
    change_settings(directory, rope_parameters=None, **settings)
    require_equal_logits(directory)


@pytest.mark.parametrize("value", ["absent", None])
def test_missing_or_null_head_dim_gives_equal_logits(tmp_path: Path, value: str | None) -> None:
    directory = tiny_llama(tmp_path / "model", head_dim=12)
    file = directory / "config.json"
    settings = json.loads(file.read_text())
    del settings["head_dim"]
    file.write_text(json.dumps(settings if value == "absent" else settings | {"head_dim": None}))
    require_equal_logits(directory)
    geometry = read_dense(directory).geometry
    assert geometry is not None
    assert geometry.head_dim == 12
