"""ShortGPT against the dense model whose forward pass skips layers, in its own class."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from intraslice_core.config import CompressionConfig, Target
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.export.targets import STOCK_FAMILIES
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    calibration,
    kept_mask,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.methods.skipped_layers import (
    IDLE,
    hidden_states,
    idle_checkpoint,
    skipping,
    turn,
)
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_family_model,
    tiny_llama,
    tiny_model,
)

WITHOUT_STOCK = ("llama_dynamic", "phi3_longrope")
"""Variants whose rotary tables depend on the length of the text."""


def config(target: Target = "research", **changes: object) -> CompressionConfig:
    settings = {"ratio": 1 / 3, "round_to": 1, "calibration": CALIBRATION} | changes
    return CompressionConfig.model_validate({"method": "shortgpt", "target": target, **settings})


def influences_of(model: nn.Module) -> list[float]:
    """Return `1 - E[cos(X_i, X_i+1)]` of every layer, one token at a time."""
    states = hidden_states(model, calibration())
    return [turn(before, after) for before, after in pairwise(states)]


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_result_is_the_dense_model_without_its_least_influential_layer(
    tmp_path: Path, variant: str
) -> None:
    dense = idle_checkpoint(tmp_path / "dense", variant)
    model = loaded(dense)
    influences = influences_of(model)
    assert min(range(3), key=lambda layer: influences[layer]) == IDLE
    with skipping(model, {IDLE}):
        expected = logits(model, other_tokens())
    model_type = tiny_family_model(variant).config.model_type
    has_stock = model_type in STOCK_FAMILIES and variant not in WITHOUT_STOCK
    for target in ("research", "stock") if has_stock else ("research",):
        report = compress_unverified(dense, tmp_path / target, config(target))
        assert report.plan.remaining == (0, 2)
        assert report.removed_fraction == pytest.approx(1 / 3)
        result = loaded(tmp_path / target)
        assert result.config.num_hidden_layers == 2
        if target == "stock":
            assert result.config.model_type == model_type
        torch.testing.assert_close(
            logits(result, other_tokens()), expected, rtol=0, atol=2e-4, msg=target
        )


def test_a_planted_identity_is_removed_without_loss(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    dense = save_checkpoint(model, tmp_path / "dense")
    for target in ("research", "adaptive", "stock"):
        report = compress_unverified(dense, tmp_path / target, config(target, ratio=0.25))
        assert report.plan.remaining == (0, 1, 3)
        assert report.params_after == sum(
            parameter.numel() for parameter in loaded(tmp_path / target).parameters()
        )
        actual = logits(loaded(tmp_path / target), other_tokens())
        torch.testing.assert_close(actual, logits(model, other_tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["research", "adaptive"])
def test_the_next_layer_keeps_the_best_neurons_that_the_budget_leaves(
    tmp_path: Path, target: Target
) -> None:
    dense = tiny_llama(tmp_path / "dense", num_hidden_layers=4)
    report = compress_unverified(dense, tmp_path / "out", config(target, ratio=0.3))
    assert report.removed_fraction == pytest.approx(0.3, abs=0.001)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()
    influences = influences_of(masked.model)
    first, second = sorted(range(4), key=lambda layer: influences[layer])[:2]
    layers = report.plan.layers
    assert layers[first].is_removed
    others = set(range(4)) - {first, second}
    assert {layers[layer] for layer in others} == {report.geometry.dense_layer()}
    inputs = masked.inputs(tokens)[second, "mlp"].flatten(0, 1)
    output = masked.output(second, "mlp")
    scores = [
        float(output[neuron].abs().mean()) * float(inputs[:, neuron].square().mean()) ** 0.5
        for neuron in range(inputs.shape[1])
    ]
    masked.mlp[second] = kept_mask(scores, layers[second].intermediate_size)
    masked.layers[first].forward = lambda hidden, *_, **__: hidden
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()),
        logits(masked.model, other_tokens()),
        rtol=0,
        atol=2e-4,
    )


def test_stock_names_the_ratios_on_either_side_of_one_between_layers(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense", num_hidden_layers=4)
    with pytest.raises(BudgetOutOfReachError, match=r"takes 1\.50 of 4 layers") as caught:
        compress_unverified(dense, tmp_path / "out", config("stock", ratio=0.375))
    assert caught.value.field == "compression.ratio"
    assert "0.2500 (1 layer), a ratio of 0.5000 (2 layers)" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_settings_with_an_entry_for_each_layer_lose_those_of_removed_layers(
    tmp_path: Path,
) -> None:
    for variant, names in {
        "qwen2": {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 1},
        "smollm3": {"no_rope_layers": [0, 1]},
        "gemma2": {"layer_types": ["sliding_attention", "sliding_attention"]},
    }.items():
        dense = idle_checkpoint(tmp_path / variant, variant)
        out = tmp_path / f"{variant}-out"
        compress_unverified(dense, out, config("stock"))
        stored = json.loads((out / "config.json").read_text("utf-8"))
        assert {name: stored[name] for name in names} == names


def test_llama_cpp_architectures_that_number_kinds_of_layers_are_rejected_before_work(
    tmp_path: Path,
) -> None:
    exports = {"exports": ("safetensors", "gguf-f16")}
    periodic = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    dense = save_checkpoint(tiny_family_model("gemma2", **periodic), tmp_path / "dense")
    with pytest.raises(ConfigurationError, match="by their numbers") as caught:
        compress_unverified(dense, tmp_path / "out", config("stock", **exports))
    assert caught.value.field == "compression.exports"
