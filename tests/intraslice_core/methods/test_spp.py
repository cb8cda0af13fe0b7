"""SPP against an oracle at full size in float64: orders by least squares, masks, and refits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.allocation.context import Shapes
from intraslice_core.allocation.estimators import CalibrationSplit, measure_sensitivity
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.export.targets import require_target
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import LayerPlan
from intraslice_core.sensitivity import measurement
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    TRAINED_VARIANTS,
    VARIANTS,
    Masked,
    calibration,
    checkpoint_of,
    fold_norm,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.tiny_models import (
    save_checkpoint,
    tiny_llama,
    tiny_model,
)

REFIT_DAMPING = 1e-4
CHOICE_DAMPING = 1e-4
METRIC_DAMPING = 1e-3
PAIR_DAMPING = 1e-3
SHRINKAGE = 0.1
TRAINED = {"max_tokens": 24 * 8, "learning_rate": 0.05}


def config(**changes: Any) -> CompressionConfig:
    settings = {"ratio": 0.3, "calibration": CALIBRATION, "round_to": 1} | changes
    return CompressionConfig.model_validate({"method": "spp"} | settings)


def damped(moment: Tensor, damping: float) -> Tensor:
    """Return a moment with damping relative to the mean of its diagonal."""
    ridge = damping * moment.diagonal().mean()
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype)


# -- the order -----------------------------------------------------------------------------------


def least_error(moment: Tensor, rows: Tensor, subset: list[int]) -> float:
    """Return the least squared error of the output by a new projection of some inputs."""
    whole = float((rows * (moment @ rows)).sum())
    if not subset:
        return whole
    cross = moment[subset] @ rows
    return whole - float((cross * torch.linalg.solve(moment[subset][:, subset], cross)).sum())


def output_gradients(model: nn.Module, tokens: Tensor) -> dict[tuple[int, str], Tensor]:
    """Return `E[g gᵀ]` of the summed loss's gradients at all modules' outputs, float64."""
    outputs: dict[tuple[int, str], Tensor] = {}
    handles = []
    for number, layer in enumerate(model.model.layers):
        modules = (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj))
        for name, module in modules:

            def hook(_module, _inputs, out, key=(number, name)):
                out.retain_grad()
                outputs[key] = out

            handles.append(module.register_forward_hook(hook))
    flat = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    nn.functional.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    gradients = {key: out.grad.double().flatten(0, 1) for key, out in outputs.items()}
    return {key: rows.T @ rows / len(rows) for key, rows in gradients.items()}


def naive_losses(moment: Tensor, rows: Tensor, order: list[list[int]], inputs: Any) -> list[float]:
    """Return the loss after each removal, and check that every removal is the cheapest one.

    Args:
        moment: of all inputs of a projection.
        rows: the projection in units of loss.
        order: of the units of every group.
        inputs: maps a set of (group, unit) to inputs.
    """
    remaining = {(group, unit) for group, own in enumerate(order) for unit in own}
    losses = []
    for step in range(len(order[0])):
        for group, own in enumerate(order):
            candidates = [unit for other, unit in sorted(remaining) if other == group]
            errors = [
                least_error(moment, rows, inputs(remaining - {(group, unit)}))
                for unit in candidates
            ]
            chosen = errors[candidates.index(own[step])]
            assert chosen <= min(errors) + 1e-4 * abs(min(errors))
        remaining -= {(group, own[step]) for group, own in enumerate(order)}
        losses.append(0.5 * least_error(moment, rows, inputs(remaining)))
    return losses


def test_units_are_ordered_by_the_loss_that_remains_after_the_others_compensate(
    tmp_path: Path,
) -> None:
    dense = tiny_llama(tmp_path / "dense", num_hidden_layers=2, intermediate_size=32)
    split = CalibrationSplit.of(calibration())
    with CheckpointReader(dense) as reader, torch.inference_mode():
        measured = measure_sensitivity(
            DenseLayerReader(reader, torch.device("cpu"), torch.float32),
            split,
            batch_size=3,
            before_batch=lambda _done: None,
            with_trial_cuts=False,
            with_value_dims=True,
        ).layers
    model = loaded(dense)
    metrics = output_gradients(model, split.metric)
    masked = Masked.of(dense, tmp_path / "canonical")
    inner = masked.inputs(split.sensitivity)
    for number, layer in enumerate(measured):
        moments = {}
        for name in ("attention", "mlp"):
            rows = inner[number, name].flatten(0, 1)
            moment = rows.T @ rows / len(rows)
            shrunk = moment + SHRINKAGE * moment.diagonal().diag()
            factor = torch.linalg.cholesky(damped(metrics[number, name], METRIC_DAMPING))
            moments[name] = damped(shrunk, CHOICE_DAMPING), masked.output(number, name) @ factor
        losses = naive_losses(
            *moments["mlp"],
            [layer.neuron_order.tolist()],
            lambda units: sorted(unit for _, unit in units),
        )
        assert layer.width_losses.flip(0)[1:-1].tolist() == pytest.approx(losses[:-1], rel=2e-3)
        assert layer.value_order is not None
        assert layer.value_costs is not None
        head_dim = layer.value_order.shape[1]
        losses = naive_losses(
            *moments["attention"],
            layer.value_order.tolist(),
            lambda units, width=head_dim: sorted(
                (2 * group + query) * width + unit for group, unit in units for query in range(2)
            ),
        )
        assert layer.value_costs.cumsum(0).tolist() == pytest.approx(losses, rel=2e-3)


# -- the result ----------------------------------------------------------------------------------


class Oracle:
    """The dense model at full size, whose layers are masked and refitted one after the other."""

    def __init__(self, masked: Masked) -> None:
        self.masked, self.tokens = masked, calibration()
        projected: dict[tuple[int, str], Tensor] = {}
        handles = []
        for number, layer in enumerate(masked.layers):
            for name in ("q_proj", "k_proj"):

                def hook(_module, _inputs, out, key=(number, name)):
                    projected[key] = out.detach().double().flatten(0, 1)

                handles.append(getattr(layer.self_attn, name).register_forward_hook(hook))
        logits(masked.model, CalibrationSplit.of(self.tokens).sensitivity)
        for handle in handles:
            handle.remove()
        self.projected = projected

    def compress(self, number: int, plan: LayerPlan, order: LayerSensitivity) -> None:
        layer, groups = self.masked.layers[number], self.masked.groups
        output, down = layer.self_attn.o_proj, layer.mlp.down_proj
        head_dim = output.weight.shape[1] // self.masked.heads
        full = self._inner(number, "attention")
        with torch.no_grad():
            if plan.qk_pairs < head_dim // 2:
                self._cut_pairs(number, order.pairs(plan.qk_pairs).kept, order.pair_moment)
            assert order.value_order is not None
            dims = order.value_order[:, head_dim - plan.v_head_dim :]
            mask = torch.zeros(groups, head_dim).scatter_(1, dims, 1.0)
            mask = mask.repeat_interleave(self.masked.heads // groups, 0).flatten()
            if plan.qk_pairs < head_dim // 2 or plan.v_head_dim < head_dim:
                inner = self._inner(number, "attention")
                self._refit(output, layer.attention_output_norm, full, inner, mask)
            width = down.weight.shape[1]
            neurons = order.neuron_order[width - plan.intermediate_size :]
            if plan.intermediate_size < width:
                inner = self._inner(number, "mlp")
                mask = torch.zeros(width).index_fill_(0, neurons, 1.0)
                self._refit(down, layer.mlp_output_norm, inner, inner, mask)

    def _inner(self, number: int, module: str) -> Tensor:
        return self.masked.inputs(self.tokens)[number, module].flatten(0, 1)

    def _cut_pairs(self, number: int, kept_pairs: Tensor, moment: Tensor) -> None:
        attention, groups = self.masked.layers[number].self_attn, self.masked.groups
        half = moment.shape[-1] // 2
        mask = torch.zeros(groups, half).scatter_(1, kept_pairs, 1.0).repeat(1, 2)
        for linear, norm, name, copies in (
            (attention.q_proj, attention.q_norm, "q_proj", self.masked.heads // groups),
            (attention.k_proj, attention.k_norm, "k_proj", 1),
        ):
            by_row = mask.repeat_interleave(copies, 0).flatten()
            for part in (linear.weight, linear.bias):
                if part is None:
                    continue
                part.mul_(by_row.view(-1, *[1] * (part.dim() - 1)))
                if name == "q_proj" and norm is None:
                    self._turn(part, kept_pairs, moment, copies)
            if norm is not None:
                fold_norm(norm, self.projected[number, name], by_row.double(), groups)

    @staticmethod
    def _turn(rows: Tensor, kept_pairs: Tensor, moment: Tensor, copies: int) -> None:
        """Multiply each kept pair of the queries by the complex factor of least squared error."""
        half = moment.shape[-1] // 2
        for group, pairs in enumerate(kept_pairs.tolist()):
            gram = damped(moment[group], PAIR_DAMPING)
            own = [*pairs, *(pair + half for pair in pairs)]
            everything = gram[own][:, :half].sum(1)
            factors = torch.linalg.solve(gram[own][:, own], everything).float()
            for head in range(group * copies, (group + 1) * copies):
                for position, pair in enumerate(pairs):
                    real, imaginary = factors[position], factors[position + len(pairs)]
                    first, second = head * 2 * half + pair, head * 2 * half + half + pair
                    a, b = rows[first].clone(), rows[second].clone()
                    rows[first] = real * a - imaginary * b
                    rows[second] = real * b + imaginary * a

    def _refit(
        self, linear: nn.Module, norm: nn.Module | None, full: Tensor, inner: Tensor, mask: Tensor
    ) -> None:
        """Solve the damped least squares towards the module's own output, all inputs in place."""
        weight = linear.weight.double().T
        if linear.bias is not None:
            ones = torch.ones(len(full), 1, dtype=full.dtype)
            full, inner = torch.cat((full, ones), 1), torch.cat((inner, ones), 1)
            weight = torch.cat((weight, linear.bias.double()[None]))
            mask = torch.cat((mask, torch.ones(1)))
        target = full @ weight
        if norm is not None:
            rms = (target**2).mean(1, keepdim=True).add(self.masked.model.config.norm_eps).sqrt()
            target, inner = target / rms, inner / rms
        inputs = mask.nonzero().flatten()
        rows = inner[:, inputs]
        gram, cross = rows.T @ rows / len(rows), rows.T @ target / len(rows)
        change = torch.linalg.solve(damped(gram, REFIT_DAMPING), cross - gram @ weight[inputs])
        fitted = torch.zeros_like(weight)
        fitted[inputs] = weight[inputs] + change
        linear.weight.copy_(fitted[: linear.weight.shape[1]].T.float())
        if linear.bias is not None:
            linear.bias.copy_(fitted[-1].float())


@pytest.mark.parametrize(
    ("variant", "training"),
    [
        *((variant, None) for variant in VARIANTS),
        *((variant, TRAINED) for variant in TRAINED_VARIANTS),
    ],
)
def test_result_is_the_dense_model_with_masked_units_refitted_at_full_size(
    tmp_path: Path, variant: str, training: dict[str, Any] | None, chosen: list[Shapes]
) -> None:
    dense = checkpoint_of(variant, tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(mask_training=training))
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)
    assert report.allocation is not None
    assert report.allocation.allocator == "solution_path"
    (shapes,) = chosen
    assert shapes.sensitivity is not None
    oracle = Oracle(Masked.of(dense, tmp_path / "canonical"))
    for number, plan in enumerate(report.plan.layers):
        oracle.compress(number, plan, shapes.sensitivity[number])
    expected = logits(oracle.masked.model, oracle.tokens)
    actual = logits(loaded(tmp_path / "out"), oracle.tokens)
    error = float((actual - expected).norm() / expected.norm())
    assert error < 2e-4, error


@pytest.mark.parametrize("training", [None, TRAINED], ids=["measured", "trained"])
def test_a_smaller_model_keeps_units_of_the_larger_one(
    tmp_path: Path, training: dict[str, Any] | None, chosen: list[Shapes]
) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)
    for ratio in (0.2, 0.4):
        settings = config(ratio=ratio, mask_training=training)
        compress_model(
            str(dense), tmp_path / f"{ratio}", settings, statistics_cache=place, verify=False
        )
    larger, smaller = chosen
    assert larger.sensitivity is not None
    assert smaller.sensitivity is not None
    for number, (wide, narrow) in enumerate(
        zip(larger.plan.layers, smaller.plan.layers, strict=True)
    ):
        above, below = larger.sensitivity[number], smaller.sensitivity[number]
        assert set(below.neurons(narrow.intermediate_size).tolist()) <= set(
            above.neurons(wide.intermediate_size).tolist()
        )
        for own, other in zip(
            below.pairs(narrow.qk_pairs).kept, above.pairs(wide.qk_pairs).kept, strict=True
        ):
            assert set(own.tolist()) <= set(other.tolist())
        span = above.basis(wide.v_head_dim)
        inside = span @ (span.mT @ below.basis(narrow.v_head_dim))
        torch.testing.assert_close(inside, below.basis(narrow.v_head_dim))


def redundant_model() -> nn.Module:
    """Return a model in which half of each dimension says nothing new."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for group in range(2):  # odd value dimensions repeat even ones
                rows = attention.v_proj.weight[16 * group : 16 * (group + 1)]
                rows[1::2] = -0.7 * rows[::2]
            for head in range(4):  # the other pairs of rotary dimensions are (0, 8) … (3, 11)
                for pair in range(4):
                    attention.q_proj.weight[[16 * head + pair, 16 * head + pair + 8]] = 0.0
            mlp.gate_proj.weight[1::2] = mlp.gate_proj.weight[::2]
            mlp.up_proj.weight[1::2] = 0.4 * mlp.up_proj.weight[::2]
    return model


def test_planted_redundancy_is_removed_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shrinkage of correlations makes what others repeat a little less replaceable.
    monkeypatch.setattr(measurement, "CHOICE_SHRINKAGE", 0.0)
    model = redundant_model()
    dense = save_checkpoint(model, tmp_path / "dense")
    expected = logits(model, other_tokens())
    for allocation, bound in (("uniform", 0.02), ("auto", 0.02)):
        settings = config(ratio=0.5, round_to=2, allocation=allocation)
        report = compress_unverified(dense, tmp_path / allocation, settings)
        sizes = {(layer.qk_pairs, layer.v_head_dim) for layer in report.plan.layers}
        assert sizes == {(4, 8)}
        actual = logits(loaded(tmp_path / allocation), other_tokens())
        error = float((actual - expected).norm() / expected.norm())
        assert error < bound, (allocation, error)


@pytest.mark.parametrize("allocation", ["uniform", "lagrangian"])
def test_other_allocations_may_choose_the_shapes(tmp_path: Path, allocation: str) -> None:
    dense = tiny_llama(tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(allocation=allocation))
    assert report.allocation is not None
    assert report.allocation.requested == allocation
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)


def test_masks_are_trained_only_where_they_are_used(tmp_path: Path) -> None:
    training = {"max_tokens": 1000}
    require_target(config(mask_training=training), "llama")
    with pytest.raises(ConfigurationError, match="flap does not train masks") as caught:
        require_target(config(method="flap", mask_training=training), "llama")
    assert caught.value.field == "compression.mask_training"
    assert "spp" in str(caught.value.hint)
    with pytest.raises(ConfigurationError, match="lagrangian compares predicted losses"):
        require_target(config(allocation="lagrangian", mask_training=training), "llama")
    compress_unverified(tiny_llama(tmp_path / "dense"), tmp_path / "once", config())
    with pytest.raises(ConfigurationError, match="spp does not take a model that was"):
        compress_unverified(tmp_path / "once", tmp_path / "twice", config())
