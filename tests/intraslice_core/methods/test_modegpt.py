"""MoDeGPT against an oracle at full size in float64, and on planted redundancy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.config import CompressionConfig
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.modeling import modeling_intraslice
from intraslice_core.plan import LayerPlan
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    calibration,
    fold_norm,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_llama,
    tiny_model,
)

REFIT_DAMPING = 1e-6
LEVERAGE_DAMPING = 0.01


def second_moment(rows: Tensor) -> Tensor:
    """Return `E[x xᵀ]` of rows, (tokens, width)."""
    return rows.T @ rows / len(rows)


def roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return square root and inverse square root, zero outside the range of the moment."""
    values, vectors = torch.linalg.eigh(moment)
    usable = values > 1e-9 * values.max()
    root = values.clamp_min(0.0).sqrt()
    inverse = torch.where(usable, 1.0 / root.clamp_min(1e-300), torch.zeros_like(root))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def published_factors(
    moment: Tensor, value: Tensor, output: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Wv'`, `Wo'` and the singular values `Σ'` by two decompositions, as published.

    Args:
        moment: `C`, (hidden_size, hidden_size).
        value: `Wv` by rows of inputs, (hidden_size, head_dim).
        output: `Wo` by rows of value dimensions, (head_dim, hidden_size · query heads).
        keep: dimensions.
    """
    root, inverse = roots(moment)
    left, sizes, right = torch.linalg.svd(root @ value, full_matrices=False)
    left_2, sizes_2, right_2 = torch.linalg.svd(torch.diag(sizes) @ right @ output)
    new_value = inverse @ left @ left_2[:, :keep]
    new_output = torch.diag(sizes_2[:keep]) @ right_2[:keep]
    return new_value, new_output, sizes_2


class Oracle:
    """The dense model at full size, whose layers are compressed one after the other."""

    def __init__(self, masked: Masked, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masked, self.tokens = masked, calibration()
        self.heads: list[Tensor] = []
        pad = modeling_intraslice.pad_heads

        def recording(heads: Tensor, width: int) -> Tensor:
            self.heads.append(heads.detach().double())
            return pad(heads, width)

        monkeypatch.setattr(modeling_intraslice, "pad_heads", recording)

    def compress(self, number: int, plan: LayerPlan) -> None:
        attention, inputs = self.masked.layers[number].self_attn, []
        handles = [
            module.register_forward_hook(lambda _m, arguments, out: inputs.append((arguments, out)))
            for module in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        self.heads.clear()
        logits(self.masked.model, self.tokens)
        for handle in handles:
            handle.remove()
        query, key = self.heads[3 * number : 3 * number + 2]
        projected = [out.detach().double().flatten(0, 1) for _, out in inputs[:2]]
        normed = inputs[2][0][0].detach().double().flatten(0, 1)
        with torch.no_grad():
            self._cut_pairs(attention, query, key, projected, plan.qk_pairs)
            self._factorise_values(attention, normed, plan.v_head_dim)
            self._cut_neurons(number, plan.intermediate_size)

    def _cut_pairs(
        self, attention: nn.Module, query: Tensor, key: Tensor, projected: list[Tensor], keep: int
    ) -> None:
        groups, width = key.shape[1], key.shape[-1]
        size, half = query.shape[1] // groups, width // 2
        if keep == half:
            return
        mask = torch.zeros(groups, width)
        for group in range(groups):
            own = query[:, group * size : (group + 1) * size]
            scores = []
            for pair in range(half):
                score = 0.0
                for dimension in (pair, pair + half):
                    queries = sum(
                        float((own[:, head, :, dimension] ** 2).mean()) for head in range(size)
                    )
                    score += queries * float((key[:, group, :, dimension] ** 2).mean())
                scores.append(score)
            best = sorted(range(half), key=lambda pair: -scores[pair])[:keep]
            mask[group, best] = mask[group, [pair + half for pair in best]] = 1.0
        for linear, norm, rows, copies in (
            (attention.q_proj, attention.q_norm, projected[0], size),
            (attention.k_proj, attention.k_norm, projected[1], 1),
        ):
            by_row = mask.repeat_interleave(copies, 0).flatten()
            linear.weight.mul_(by_row[:, None])
            if linear.bias is not None:
                linear.bias.mul_(by_row)
            if norm is not None:
                fold_norm(norm, rows, by_row.double(), groups)

    def _factorise_values(self, attention: nn.Module, normed: Tensor, keep: int) -> None:
        groups, heads = self.masked.groups, self.masked.heads
        value, output = attention.v_proj, attention.o_proj
        width = value.weight.shape[0] // groups
        if keep == width:
            return
        rows = value.weight.double().T
        if value.bias is not None:  # the weight of an input that is constantly 1
            normed = torch.cat((normed, torch.ones(len(normed), 1, dtype=normed.dtype)), 1)
            rows = torch.cat((rows, value.bias.double()[None]))
        columns = output.weight.double().T.view(groups, heads // groups, width, -1)
        moment = second_moment(normed)
        for group in range(groups):
            own = slice(group * width, (group + 1) * width)
            wide = torch.cat(list(columns[group]), 1)
            new_value, new_output, _ = published_factors(moment, rows[:, own], wide, keep)
            padded = torch.zeros(rows.shape[0], width, dtype=rows.dtype)
            padded[:, :keep] = new_value
            value.weight[own] = padded[: value.weight.shape[1]].T.float()
            if value.bias is not None:
                value.bias[own] = padded[-1].float()
            per_head = new_output.chunk(heads // groups, 1)
            for number, factor in enumerate(per_head, start=group * (heads // groups)):
                padded = torch.zeros(width, factor.shape[1], dtype=rows.dtype)
                padded[:keep] = factor
                output.weight[:, number * width : (number + 1) * width] = padded.T.float()

    def _cut_neurons(self, number: int, keep: int) -> None:
        layer = self.masked.layers[number]
        inner = self.masked.inputs(self.tokens)[number, "mlp"].flatten(0, 1)
        down, width = layer.mlp.down_proj, layer.mlp.down_proj.weight.shape[1]
        if keep == width:
            return
        weight = down.weight.double().T
        if down.bias is not None:
            inner = torch.cat((inner, torch.ones(len(inner), 1, dtype=inner.dtype)), 1)
            weight = torch.cat((weight, down.bias.double()[None]))
        if layer.mlp_output_norm is not None:
            rms = ((inner @ weight) ** 2).mean(1).add(self.masked.model.config.norm_eps).sqrt()
            inner = inner / rms[:, None]
        moment = second_moment(inner)
        neurons = moment[:width, :width]
        ridge = LEVERAGE_DAMPING * neurons.diagonal().mean() * torch.eye(width, dtype=inner.dtype)
        leverage = (neurons @ torch.linalg.inv(neurons + ridge)).diagonal().tolist()
        remaining = sorted(sorted(range(width), key=lambda neuron: -leverage[neuron])[:keep])
        rows = torch.tensor(remaining + list(range(width, len(moment))))
        own = moment[rows][:, rows]
        own = own + REFIT_DAMPING * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
        fitted = torch.linalg.solve(own, moment[rows] @ weight)
        down.weight.zero_()
        down.weight[:, remaining] = fitted[:keep].T.float()
        if down.bias is not None:
            down.bias.copy_(fitted[-1])


@pytest.mark.parametrize("variant", [*FAMILY_VARIANTS, "one KV head", "multi-head"])
def test_result_is_the_dense_model_with_each_module_decomposed_at_full_size(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"one KV head": 1, "multi-head": 4}.get(variant)
    if groups is None:
        dense = tiny_checkpoint(tmp_path / "dense", variant)
    else:
        dense = tiny_llama(tmp_path / "dense", num_key_value_heads=groups)
    config = CompressionConfig(method="modegpt", ratio=0.3, calibration=CALIBRATION, round_to=1)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)
    oracle = Oracle(Masked.of(dense, tmp_path / "canonical"), monkeypatch)
    for number, plan in enumerate(report.plan.layers):
        oracle.compress(number, plan)
    monkeypatch.undo()
    # Text with other letters excites directions of the inputs that no moment has seen.
    expected = logits(oracle.masked.model, oracle.tokens)
    actual = logits(loaded(tmp_path / "out"), oracle.tokens)
    error = float((actual - expected).norm() / expected.norm())
    assert error < 1e-4, error


def test_layers_lose_ratios_that_follow_from_their_block_influence(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    model, tokens = loaded(dense), calibration()
    states: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0].double()))
        layer.register_forward_hook(lambda _module, _inputs, out: states.append(out.double()))
    logits(model, tokens)
    influences = []
    for before, after in zip(states[::2], states[1::2], strict=True):
        cosines = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        influences.append(1.0 - float(cosines.mean()))
    weights = torch.softmax(-torch.tensor(influences, dtype=torch.float64) / 0.15, 0)
    expected = 3 * 0.25 * weights
    assert float(expected.max()) < 0.8
    assert float(expected.max() - expected.min()) > 0.1
    config = CompressionConfig(method="modegpt", ratio=0.25, calibration=CALIBRATION)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.allocation is not None
    assert report.allocation.allocator == "block_influence"
    whole = report.geometry.dense_layer().parameters(report.geometry)
    step = 3 * 48 * (report.config.round_to or 1)
    for plan, ratio in zip(report.plan.layers, expected.tolist(), strict=True):
        assert abs(plan.parameters(report.geometry) - (1.0 - ratio) * whole) <= step


def redundant_model() -> nn.Module:
    """Return a model in which half of each dimension says nothing new."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for group in range(2):  # values of rank 8 in 16 dimensions
                rows = slice(16 * group, 16 * (group + 1))
                mixed = torch.randn(16, 8, generator=generator) / 4
                attention.v_proj.weight[rows] = mixed @ attention.v_proj.weight[rows][:8]
            for head in range(4):  # the other pairs of rotary dimensions are (0, 8) … (3, 11)
                for pair in range(4):
                    attention.q_proj.weight[[16 * head + pair, 16 * head + pair + 8]] = 0.0
            mlp.gate_proj.weight[1::2] = mlp.gate_proj.weight[::2]
            mlp.up_proj.weight[1::2] = 0.4 * mlp.up_proj.weight[::2]
    return model


def test_planted_redundancy_is_removed_without_loss(tmp_path: Path) -> None:
    model = redundant_model()
    dense = save_checkpoint(model, tmp_path / "dense")
    settings = {"ratio": 0.5, "calibration": CALIBRATION, "round_to": 2, "allocation": "uniform"}
    expected = logits(model, other_tokens())
    differences = {}
    for method in ("modegpt", "intraslice", "magnitude"):
        config = CompressionConfig(method=method, **settings)
        report = compress_unverified(dense, tmp_path / method, config)
        sizes = {(layer.qk_pairs, layer.v_head_dim) for layer in report.plan.layers}
        assert sizes == {(4, 8)}
        actual = logits(loaded(tmp_path / method), other_tokens())
        differences[method] = float((actual - expected).norm() / expected.norm())
    assert differences["modegpt"] < 1e-3
    assert differences["magnitude"] > 0.1  # the planted parts are not small
    for layer in compress_unverified(
        dense, tmp_path / "again", CompressionConfig(method="modegpt", **settings)
    ).layers:
        assert layer.attention.explained_energy == pytest.approx(1.0, abs=1e-5)
        assert layer.attention.relative_error is None
        assert layer.mlp.relative_error == pytest.approx(0.0, abs=1e-5)
        assert [spectrum.dimension for spectrum in layer.attention.spectra] == [
            "rotary pairs",
            "value dims",
        ]


@pytest.mark.parametrize("allocation", ["uniform", "lagrangian"])
def test_other_allocations_may_choose_the_shapes(tmp_path: Path, allocation: str) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig.model_validate(
        {"method": "modegpt", "ratio": 0.3, "allocation": allocation, "calibration": CALIBRATION}
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.allocation is not None
    assert report.allocation.allocator == allocation
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)


def test_budgets_out_of_reach_and_compressed_inputs_are_rejected_before_the_work(
    tmp_path: Path,
) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    settings = {"method": "modegpt", "calibration": CALIBRATION}
    config = CompressionConfig(target="adaptive", ratio=0.85, **settings)
    with pytest.raises(BudgetOutOfReachError, match="compressible parameters") as caught:
        compress_unverified(dense, tmp_path / "out", config)
    limit = float(str(caught.value.hint).split("give ratio ")[1].split(" ")[0].rstrip(","))
    config = CompressionConfig(target="adaptive", ratio=limit, **settings)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.removed_fraction == pytest.approx(limit, abs=0.02)
    # Above a layer's usual cap of 0.8, but within module_cap.
    config = CompressionConfig(ratio=0.88, round_to=1, **settings)
    report = compress_unverified(dense, tmp_path / "most", config)
    assert report.removed_fraction == pytest.approx(0.88, abs=0.005)
    with pytest.raises(ConfigurationError, match="modegpt does not take a model that was"):
        compress_unverified(tmp_path / "most", tmp_path / "twice", config)
