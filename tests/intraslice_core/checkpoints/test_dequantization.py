"""Quantised checkpoints become the floating-point weights that their formats define."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.dequantization import scaled_weight, unpack_words
from intraslice_core.checkpoints.quantization import WeightScheme
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import ModelLimits
from intraslice_core.cost_model import read_dense
from intraslice_core.errors import (
    BrokenCheckpointError,
    ModelTooLargeError,
    UnsupportedFormatError,
)
from intraslice_core.plan import dense_parameters
from tests.intraslice_core.checkpoints.dense_logits import (
    WEIGHTS,
    change_settings,
    change_weights,
    require_equal_logits,
)
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

BLOCK = 16
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def scheme(bits: int = 8, block: tuple[int, int] | None = None) -> WeightScheme:
    return WeightScheme(targets=("Linear",), bits=bits, block=block)


def is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


def store_in_fp8(tensors: dict[str, Tensor]) -> None:
    """Replace the projections by float8 values with a scale for every block."""
    for name in filter(is_projection, list(tensors)):
        rows, columns = tensors[name].shape
        blocks = tensors[name].float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)) / 448
        stored = (blocks / scale[:, None, :, None]).view(rows, columns)
        tensors[name] = stored.to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale


def fp8_checkpoint(directory: Path, **settings: Any) -> Path:
    save_checkpoint(tiny_model(head_dim=16).to(torch.bfloat16), directory)
    change_weights(directory, store_in_fp8)
    change_settings(directory, quantization_config=FP8 | settings)
    return directory


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack signed integers (rows, columns) into words, bit by bit, in Python's integers."""
    rows = []
    for row in values.tolist():
        number = sum((value + 2 ** (bits - 1)) << bits * index for index, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> 32 * word & 0xFFFFFFFF for word in range(count)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [7, 32, 45])
def test_words_are_unpacked(bits: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = torch.randint(low, high, (3, columns), generator=generator)
    words = pack(values, bits)
    assert torch.equal(unpack_words(words, bits, columns), values.to(torch.int8))
    with pytest.raises(ValueError, match="do not hold"):
        unpack_words(words, bits, columns + 64)


@pytest.mark.parametrize(
    ("scale", "block", "expected"),
    [
        (torch.tensor(0.5), None, [[0.5, 1.0, 1.5, 2.0], [2.5, 3.0, 3.5, 4.0]]),
        (torch.tensor([1.0, 10.0]), None, [[1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 70.0, 80.0]]),
        (torch.tensor([[1.0, 10.0]]), None, [[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0]]),
        (torch.tensor([[1.0, 10.0]]), (2, 3), [[1.0, 2.0, 3.0, 40.0], [5.0, 6.0, 7.0, 80.0]]),
        (torch.tensor([[127, 129]], dtype=torch.uint8), None, [[1, 2, 12, 16], [5, 6, 28, 32]]),
    ],
)
def test_scales_cover_tensor_rows_groups_and_blocks(
    scale: Tensor, block: tuple[int, int] | None, expected: list[list[float]]
) -> None:
    weight = torch.arange(1, 9, dtype=torch.int8).view(2, 4)
    values = scaled_weight(weight, {"weight_scale": scale}, scheme(block=block))
    assert torch.equal(values, torch.tensor(expected, dtype=torch.float32))


def test_columns_may_belong_to_groups_in_any_order() -> None:
    weight = torch.ones(1, 4, dtype=torch.int8)
    side = {
        "weight_scale": torch.tensor([[1.0, 10.0]]),
        "weight_zero_point": torch.tensor([[0, -1]], dtype=torch.int8),
        "weight_g_idx": torch.tensor([1, 0, 0, 1], dtype=torch.int32),
    }
    assert scaled_weight(weight, side, scheme()).tolist() == [[20.0, 1.0, 1.0, 20.0]]


def test_scales_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match="3 scales do not divide"):
        scaled_weight(torch.ones(2, 4), {"weight_scale": torch.ones(2, 3)}, scheme())


def test_fp8_weights_are_those_that_transformers_dequantises(tmp_path: Path) -> None:
    directory = fp8_checkpoint(tmp_path / "model")
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    opened = open_model(str(directory), tmp_path)
    with CheckpointReader(opened) as reader:
        for name, tensor in reference.state_dict().items():
            if name != "lm_head.weight":  # tied
                assert torch.equal(reader.tensor(name), tensor.to(torch.bfloat16)), name
        assert "FP8" in " ".join(reader.warnings)
        assert reader.dtype == torch.bfloat16
    require_equal_logits(opened)
    assert (opened / "tokenizer.json").is_file()
    assert "quantization_config" not in json.loads((opened / "config.json").read_text())


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_become_the_values_they_stand_for(
    tmp_path: Path, form: str, symmetric: bool
) -> None:
    directory = tiny_llama(tmp_path / "model", head_dim=16)
    expected: dict[str, Tensor] = {}

    def quantise(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(3)
        for name in filter(is_projection, list(tensors)):
            shape = tensors.pop(name).shape
            module = name.removesuffix(".weight")
            groups = shape[1] // 16
            values = torch.randint(-8, 8, shape, generator=generator)
            zero = torch.randint(-8, 8, (shape[0], groups), generator=generator)
            scale = torch.rand(shape[0], groups, generator=generator)
            offset = 0 if symmetric else zero.repeat_interleave(16, 1)
            expected[name] = (values - offset) * scale.repeat_interleave(16, 1)
            tensors[f"{module}.weight_scale"] = scale
            if form == "pack-quantized":
                tensors[f"{module}.weight_packed"] = pack(values, 4)
                tensors[f"{module}.weight_shape"] = torch.tensor(shape)
                zero = pack(zero.T, 4).T.contiguous()
            else:
                tensors[name] = values.to(torch.int8)
                zero = zero.to(torch.int8)
            if not symmetric:
                tensors[f"{module}.weight_zero_point"] = zero

    change_weights(directory, quantise)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": weights}
    change_settings(
        directory,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": group},
        },
    )
    dense = read_dense(directory)
    with CheckpointReader(open_model(str(directory), tmp_path)) as reader:
        for name, values in expected.items():
            assert torch.equal(reader.tensor(name), values)
        assert form in " ".join(reader.warnings)
        assert dense.geometry == reader.family.geometry(reader.config)
        assert dense.facts.parameters == dense_parameters(dense.geometry)
    assert (dense.item_bytes, dense.converted) == (4, True)


def test_limits_count_unpacked_weights(tmp_path: Path) -> None:
    directory = fp8_checkpoint(tmp_path / "model")
    with CheckpointReader(open_model(str(directory), tmp_path)) as reader:
        size = dense_parameters(reader.family.geometry(reader.config))
    assert read_dense(directory).facts.parameters == size
    with pytest.raises(ModelTooLargeError):
        open_model(str(directory), tmp_path / "other", ModelLimits(max_parameters=size - 1))


def test_missing_scale_is_named(tmp_path: Path) -> None:
    directory = fp8_checkpoint(tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(directory, lambda tensors: tensors.__delitem__(f"{name}_scale_inv"))
    with pytest.raises(BrokenCheckpointError, match=rf"{name} cannot be dequantised.*no weight_sc"):
        open_model(str(directory), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


SCHEMES: dict[str, dict[str, Any]] = {
    "GPTQ (4 bits)": {"quant_method": "gptq", "bits": 4},
    "AWQ (4 bits)": {"quant_method": "awq", "w_bit": 4},
    "bitsandbytes (4 bits)": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes (8 bits)": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "with bitsandbytes (8 bits)": {"load_in_8bit": True},
    "ModelOpt (NVFP4)": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "MXFP4": {"quant_method": "mxfp4"},
    "some_new_method": {"quant_method": "some_new_method"},
    "format nvfp4-pack-quantized": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
    },
    "sparsity format sparse-24-bitmask": {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": "sparse-24-bitmask"},
    },
}


@pytest.mark.parametrize("name", SCHEMES)
def test_other_schemes_are_named_by_the_engine_and_the_service(tmp_path: Path, name: str) -> None:
    directory = tiny_llama(tmp_path / "model")
    change_settings(directory, quantization_config=SCHEMES[name])
    for read in (CheckpointReader, read_dense, lambda place: open_model(str(place), tmp_path)):
        with pytest.raises(UnsupportedFormatError) as caught:
            read(directory)
        assert name in caught.value.message
        assert caught.value.hint is not None


def test_packed_weights_without_settings_are_named(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")

    def pack_one(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.up_proj.qweight"] = torch.ones(2, 2, dtype=torch.int32)

    change_weights(directory, pack_one)
    with pytest.raises(UnsupportedFormatError, match=r"up_proj\.qweight is packed"):
        CheckpointReader(directory)


@pytest.mark.parametrize(
    "section",
    [
        "fp8",
        {"quant_method": "fp8", "weight_block_size": "x"},
        {"quant_method": "fp8", "weight_block_size": [0, 1]},
        {"quant_method": "compressed-tensors", "config_groups": 3},
        {"quant_method": "compressed-tensors", "config_groups": {"a": []}},
    ],
)
def test_malformed_settings_are_rejected(tmp_path: Path, section: object) -> None:
    directory = tiny_llama(tmp_path / "model")
    change_settings(directory, quantization_config=section)
    with pytest.raises(BrokenCheckpointError, match="quantization_config"):
        read_dense(directory)


def test_original_file_is_left_as_it_was(tmp_path: Path) -> None:
    directory = fp8_checkpoint(tmp_path / "model")
    before = (directory / WEIGHTS).read_bytes()
    open_model(str(directory), tmp_path)
    assert (directory / WEIGHTS).read_bytes() == before
    assert load_file(directory / WEIGHTS)
