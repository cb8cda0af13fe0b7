"""Multimodal wrappers: their language model is read, compressed and written back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_directory, open_model
from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
)
from intraslice_core.cost_model import read_dense
from intraslice_core.errors import (
    BrokenCheckpointError,
    ConfigurationError,
    UnsupportedArchitectureError,
)
from intraslice_core.evaluation.comparison import evaluate_one
from intraslice_core.families.wrappers import WRAPPERS
from intraslice_core.finetuning.recover import recover_model
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.checkpoints.dense_logits import (
    change_settings,
    change_weights,
    engine_logits,
    tokens,
)
from tests.intraslice_core.checkpoints.test_dequantization import FP8, store_in_fp8
from tests.intraslice_core.tiny_wrappers import image_inputs, load_wrapper, tiny_wrapper

CONFIG = CompressionConfig(
    ratio=0.25,
    round_to=2,
    calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
)
STOCK = CONFIG.model_copy(update={"target": "stock"})


def text_logits(directory: Path) -> Tensor:
    with torch.no_grad():
        logits: Tensor = load_wrapper(directory)(input_ids=tokens()).logits
    return logits


def renamed(*pairs: tuple[str, str]) -> Callable[[dict[str, Tensor]], None]:
    """Return a change of the names of stored tensors by their prefixes."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for old, new in pairs:
                if name.startswith(old):
                    tensors[new + name.removeprefix(old)] = tensors.pop(name)
                    break

    return change


LLAVA_IN_MEMORY = renamed(
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
IN_MEMORY = {
    "gemma3": LLAVA_IN_MEMORY,
    "mistral3": LLAVA_IN_MEMORY,
    "qwen2_5_vl": renamed(("model.", "model.language_model."), ("visual.", "model.visual.")),
}
"""Changes of the names that transformers writes into those that it has in memory."""


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("model_type", list(WRAPPERS))
def test_the_language_model_computes_what_the_wrapper_does(
    model_type: str, in_memory: bool, tmp_path: Path
) -> None:
    place = tiny_wrapper(tmp_path / "dense", model_type)
    if in_memory:
        change_weights(place, IN_MEMORY[model_type])
    directory = open_model(str(place), tmp_path / "work")
    torch.testing.assert_close(
        engine_logits(directory, tokens()), text_logits(place), rtol=0, atol=1e-4
    )
    assert not (directory / "preprocessor_config.json").exists()
    assert read_dense(place).geometry == read_dense(directory).geometry


def test_a_quantised_wrapper_is_dequantised_as_a_whole(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "mistral3")
    change_weights(place, store_in_fp8)
    change_settings(place, quantization_config=FP8)
    source = open_directory(str(place), tmp_path / "work")
    assert source.wrapper is not None
    torch.testing.assert_close(
        engine_logits(source.path, tokens()), text_logits(source.wrapper), rtol=0, atol=1e-4
    )
    with CheckpointReader(source.path) as reader:
        assert "FP8" in " ".join(reader.warnings)


def test_settings_of_qwen_beside_those_of_the_wrapper_are_read(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "qwen2_5_vl")
    settings = json.loads((place / "config.json").read_text())
    text = settings.pop("text_config")
    rope = text.pop("rope_parameters")
    del text["model_type"]
    flat = settings | text | {"rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (place / "config.json").write_text(json.dumps(flat))
    directory = open_model(str(place), tmp_path / "work")
    torch.testing.assert_close(
        engine_logits(directory, tokens()), text_logits(place), rtol=0, atol=1e-4
    )
    assert read_dense(place).geometry == read_dense(directory).geometry


def test_a_stored_head_is_kept_although_the_wrapper_ties_it(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "mistral3")
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    directory = open_model(str(place), tmp_path / "work")
    torch.testing.assert_close(
        engine_logits(directory, tokens()), text_logits(place), rtol=0, atol=1e-4
    )
    geometry = read_dense(place).geometry
    assert geometry is not None
    assert not geometry.tie_word_embeddings


def test_target_research_writes_the_language_model_alone(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "gemma3")
    report = compress_model(str(place), tmp_path / "out", CONFIG, verify=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.model_type == "intraslice"
    assert not any("vision" in name for name in load_file(tmp_path / "out/model.safetensors"))
    assert report.params_after < report.params_before
    assert any("the language model alone" in warning for warning in report.warnings)


@pytest.mark.parametrize("model_type", list(WRAPPERS))
def test_target_stock_writes_the_whole_wrapper(model_type: str, tmp_path: Path) -> None:
    place, out = tiny_wrapper(tmp_path / "dense", model_type), tmp_path / "out"
    if model_type == "gemma3":
        change_weights(place, IN_MEMORY[model_type])
    # The clean process takes seconds; transformers' causal models include no Mistral 3.
    report = compress_model(str(place), out, STOCK, verify=model_type == "mistral3")
    assert bool(report.verified) is (model_type == "mistral3")
    assert report.params_after < report.params_before
    assert any("the whole model" in warning for warning in report.warnings)
    dense, stored = load_file(place / "model.safetensors"), load_file(out / "model.safetensors")
    assert dense.keys() == stored.keys()
    for name in dense:
        if WRAPPERS[model_type].text_name(name) is None:
            assert torch.equal(dense[name], stored[name])
    assert (out / "preprocessor_config.json").is_file()
    model, whole = load_wrapper(out), load_wrapper(place)
    assert type(model) is type(whole)
    assert model.num_parameters() < whole.num_parameters()
    with torch.no_grad():
        logits = model(**image_inputs(model_type)).logits
        expected = whole(**image_inputs(model_type)).logits
    assert logits.isfinite().all()
    assert torch.corrcoef(torch.stack((logits.flatten(), expected.flatten())))[0, 1] > 0.5
    with pytest.raises(UnsupportedArchitectureError, match="after their compression"):
        recover_model(out, str(place), tmp_path / "trained", RecoveryConfig())
    # The result is a wrapper like any other.
    again = open_model(str(out), tmp_path / "work")
    torch.testing.assert_close(engine_logits(again, tokens()), text_logits(out), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", list(WRAPPERS))
def test_target_stock_writes_a_whole_wrapper_of_fewer_layers(
    model_type: str, tmp_path: Path
) -> None:
    place, out = tiny_wrapper(tmp_path / "dense", model_type), tmp_path / "out"
    config = STOCK.model_copy(update={"method": "shortgpt", "ratio": 0.5})
    report = compress_model(str(place), out, config, verify=False)
    assert len(report.plan.remaining) == 1
    model = load_wrapper(out)
    assert model.config.get_text_config().num_hidden_layers == 1
    with torch.no_grad():
        assert model(**image_inputs(model_type)).logits.isfinite().all()
    again = open_model(str(out), tmp_path / "work")
    torch.testing.assert_close(engine_logits(again, tokens()), text_logits(out), rtol=0, atol=1e-4)


def test_a_whole_wrapper_is_evaluated_as_its_language_model(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "mistral3")
    config = EvaluationConfig(perplexity=("pydoc",), max_tokens=500, context_length=64)
    perplexities = [
        evaluate_one(directory, config, dtype="float32", device="cpu").perplexity["pydoc"]
        for directory in (place, open_model(str(place), tmp_path / "work"))
    ]
    assert perplexities[0].mean_nll == pytest.approx(perplexities[1].mean_nll, abs=1e-5)


def test_a_size_of_the_whole_wrapper_is_rejected_before_the_work(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "gemma3")
    config = STOCK.model_copy(update={"ratio": None, "target_params": 70_000})
    with pytest.raises(ConfigurationError, match="target_params is not supported") as caught:
        compress_model(str(place), tmp_path / "out", config)
    assert caught.value.field == "compression.target_params"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"model_type": "llama4", "text_config": {}}, "mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "idefics3", "vision_config": {}}, "multimodal model"),
        ({"model_type": "mistral3", "text_config": {"model_type": "gpt2"}}, "text_config"),
    ],
)
def test_other_kinds_are_rejected_by_name(
    settings: dict[str, object], kind: str, tmp_path: Path
) -> None:
    place = tiny_wrapper(tmp_path / "dense", "mistral3")
    (place / "config.json").write_text(json.dumps(settings))
    for read in (read_dense, lambda path: compress_model(str(path), tmp_path / "out", CONFIG)):
        with pytest.raises(UnsupportedArchitectureError, match=kind):
            read(place)


def test_a_tensor_under_two_names_is_rejected(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "gemma3")
    tensors = load_file(place / "model.safetensors")
    name = "language_model.model.norm.weight"
    tensors["model.language_model.norm.weight"] = tensors[name].clone()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpointError, match="stored twice"):
        open_model(str(place), tmp_path / "work")


def test_an_extracted_language_model_is_reused(tmp_path: Path) -> None:
    place = tiny_wrapper(tmp_path / "dense", "gemma3")
    first = open_directory(str(place), tmp_path / "work")
    changed = (first.path / "model.safetensors").stat().st_mtime_ns
    assert open_directory(str(place), tmp_path / "work") == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == changed
    assert first.wrapper == place
