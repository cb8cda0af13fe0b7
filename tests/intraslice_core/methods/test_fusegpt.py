"""FuseGPT's removals and refits, computed naively on the dense model with skipped layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.layer_removal import LayerRemovalSearch
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.methods import METHODS
from intraslice_core.pipeline import compress_model
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    calibration,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.methods.skipped_layers import (
    IDLE,
    hidden_states,
    idle_checkpoint,
    logits_without,
    skipping,
    turn,
)
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

OUTPUT_NORMS = ("gemma2", "olmo2")
"""Variants whose norms follow the modules' outputs."""
STRUCTURES = ("llama", "phi", "gpt_neox", "opt", "granite", "qwen3", *OUTPUT_NORMS)
DAMPING = 0.1


def config(**changes: object) -> CompressionConfig:
    settings = {"ratio": 1 / 3, "round_to": 1, "calibration": CALIBRATION} | changes
    return CompressionConfig.model_validate({"method": "fusegpt", **settings})


def naive_order(model: nn.Module, tokens: Tensor, count: int) -> list[int]:
    """Return the layers in the order of removal, the model run anew for every candidate."""
    removed: list[int] = []
    layers = len(hidden_states(model, tokens)) - 1
    for _ in range(count):
        influences = {}
        with skipping(model, set(removed)):
            whole = hidden_states(model, tokens)[-1]
        for layer in set(range(layers)) - set(removed):
            with skipping(model, {*removed, layer}):
                influences[layer] = turn(whole, hidden_states(model, tokens)[-1])
        removed.append(min(influences, key=lambda layer: influences[layer]))
    return removed


@pytest.mark.parametrize("seed", [0, 1])
def test_layers_are_removed_in_the_order_of_a_model_that_is_run_anew(
    tmp_path: Path, seed: int
) -> None:
    dense = tiny_llama(tmp_path / "dense", seed=seed, num_hidden_layers=5, initializer_range=0.2)
    tokens = CalibrationSplit.of(calibration()).judged
    expected = naive_order(loaded(dense), tokens, 3)
    with CheckpointReader(dense) as reader, torch.inference_mode():
        search = LayerRemovalSearch(
            layers=DenseLayerReader(reader, torch.device("cpu"), torch.float32),
            tokens=tokens,
            batch_size=2,
        )
        reported: list[float] = []
        order = search.order(3, reported.append)
    assert list(order) == expected
    assert reported == sorted(reported)
    assert 0.0 <= reported[0] < reported[-1] < 1.0
    report = compress_unverified(dense, tmp_path / "out", config(ratio=0.6))
    assert set(range(5)) - set(report.plan.remaining) == set(expected)


def test_a_second_ratio_continues_the_cached_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama(tmp_path / "dense", num_hidden_layers=5, initializer_range=0.2)
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)
    measured: list[tuple[int, ...]] = []
    measure = LayerRemovalSearch.influences

    def counted(self: LayerRemovalSearch, removed: tuple[int, ...], before_batch: Any) -> Any:
        measured.append(removed)
        return measure(self, removed, before_batch)

    monkeypatch.setattr(LayerRemovalSearch, "influences", counted)

    def run(ratio: float, name: str, cache: StatisticsCache | None) -> bytes:
        measured.clear()
        out, settings = tmp_path / name, config(ratio=ratio)
        compress_model(str(dense), out, settings, statistics_cache=cache, verify=False)
        return (out / "model.safetensors").read_bytes()

    alone = run(0.45, "alone", None)
    assert len(measured) == 3  # two layers are removed, and the MLP of a third is narrowed
    run(0.4, "first", place)
    assert len(measured) == 2
    assert run(0.45, "second", place) == alone
    assert len(measured) == 1
    run(0.2, "third", place)
    assert measured == []


@pytest.mark.parametrize("variant", STRUCTURES)
def test_layers_before_the_removed_one_stay_and_later_ones_make_up_for_it(
    tmp_path: Path, variant: str
) -> None:
    dense = idle_checkpoint(tmp_path / "dense", variant, factor=0.6)
    report = compress_unverified(dense, tmp_path / "out", config())
    assert len(report.plan.remaining) == 2
    (removed,) = set(range(3)) - set(report.plan.remaining)
    tokens = calibration()
    expected = logits(loaded(dense), tokens)
    skipped = logits_without(dense, {removed}, tokens)
    actual = logits(loaded(tmp_path / "out"), tokens)
    if variant in OUTPUT_NORMS:
        assert any("refits nothing" in warning for warning in report.warnings)
    if variant in OUTPUT_NORMS or removed == 2:
        torch.testing.assert_close(actual, skipped, rtol=0, atol=2e-4)
        return
    assert (actual - expected).norm() < 0.97 * (skipped - expected).norm()
    refitted = [layer.layer for layer in report.layers if layer.mlp.relative_error is not None]
    assert refitted == list(range(removed + 1, 3))


def test_refits_solve_the_damped_least_squares_towards_the_dense_hidden_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(METHODS["fusegpt"], damping_own=(DAMPING,), damping_correction=(DAMPING,))
    monkeypatch.setitem(METHODS, "fusegpt", own)
    dense = idle_checkpoint(tmp_path / "dense", "llama", factor=0.6)
    report = compress_unverified(dense, tmp_path / "out", config(dtype="float32"))
    assert report.plan.remaining == (0, 2)
    oracle, target, tokens = loaded(dense), loaded(dense), calibration()
    with skipping(oracle, {IDLE}), torch.no_grad():
        for module in ("self_attn.o_proj", "mlp.down_proj"):
            _refit(oracle, target, tokens, f"model.layers.2.{module}")
        expected = logits(oracle, other_tokens())
    torch.testing.assert_close(
        logits(loaded(tmp_path / "out"), other_tokens()), expected, rtol=0, atol=2e-4
    )


def _refit(model: nn.Module, target: nn.Module, tokens: Tensor, name: str) -> None:
    """Add to a projection the damped solution of what the hidden states after it lack."""
    inputs, ours = _around(model, tokens, name)
    _, theirs = _around(target, tokens, name)
    lacking = (theirs - ours).flatten(0, 1)
    rows = inputs.flatten(0, 1)
    gram, cross = rows.T @ rows / len(rows), rows.T @ lacking / len(rows)
    solution = torch.linalg.solve(gram + DAMPING * gram.diagonal().diag(), cross)
    projection = model.get_submodule(name)
    projection.weight += solution.T.float()


def _around(model: nn.Module, tokens: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return a projection's inputs and the hidden states after its module, float64."""
    caught: dict[str, Tensor] = {}
    layer = model.get_submodule(name.rsplit(".", 2)[0])
    norm = layer.post_attention_layernorm
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, arguments: caught.update(inputs=arguments[0].detach().double())
        ),
        norm.register_forward_pre_hook(
            lambda _module, arguments: caught.update(between=arguments[0].detach().double())
        ),
        layer.register_forward_hook(
            lambda _module, _arguments, out: caught.update(after=out.detach().double())
        ),
    ]
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    return caught["inputs"], caught["between" if name.endswith("o_proj") else "after"]


def test_a_planted_identity_is_removed_without_loss(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    dense = save_checkpoint(model, tmp_path / "dense")
    for target in ("research", "adaptive", "stock"):
        report = compress_unverified(dense, tmp_path / target, config(target=target, ratio=0.25))
        assert report.plan.remaining == (0, 2, 3)
        actual = logits(loaded(tmp_path / target), other_tokens())
        torch.testing.assert_close(actual, logits(model, other_tokens()), rtol=0, atol=1e-4)
