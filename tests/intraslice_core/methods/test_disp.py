"""DISP-LLM against an oracle at full size in float64, and on planted redundancy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from intraslice_core.allocation.context import Shapes
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError, NumericalError
from intraslice_core.plan import LayerPlan, ResidualParts, ResidualWidths
from intraslice_core.selection.residual_parts import ResidualPartSelections
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    TRAINED_VARIANTS,
    VARIANTS,
    Masked,
    calibration,
    checkpoint_of,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.tiny_models import (
    save_checkpoint,
    tiny_checkpoint,
    tiny_llama,
    tiny_model,
)

DAMPING = 1e-4
TRAINED = {"max_tokens": 24 * 4, "learning_rate": 0.01}


def config(**changes: Any) -> CompressionConfig:
    settings = {"ratio": 0.3, "calibration": CALIBRATION, "round_to": 1} | changes
    return CompressionConfig.model_validate({"method": "disp"} | settings)


def damped(moment: Tensor) -> Tensor:
    ridge = DAMPING * moment.diagonal().mean()
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype)


def second_moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def most_needed(moment: Tensor, weight: Tensor, keep: int) -> list[int]:
    """Return the inputs that remain if the one that the others replace best goes, one by one.

    Args:
        moment: of all inputs, (inputs, inputs).
        weight: projection by rows of inputs, (inputs, outputs).
        keep: inputs that remain.
    """
    moment = damped(moment)
    remaining = list(range(len(moment)))
    target = moment @ weight
    while len(remaining) > keep:
        own = moment[remaining][:, remaining]
        fitted = torch.linalg.solve(own, target[remaining])
        saliency = (fitted**2).sum(1) / torch.linalg.inv(own).diagonal()
        remaining.pop(int(saliency.argmin()))
    return remaining


def with_ones(rows: Tensor) -> Tensor:
    return torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), 1)


def fitted_to(inputs: Tensor, target: Tensor, prior: Tensor) -> Tensor:
    """Return the damped least squares of a target, shrunk to a prior projection."""
    gram, cross = second_moment(inputs), inputs.T @ target / len(inputs)
    return prior + torch.linalg.solve(damped(gram), cross - gram @ prior)


class Oracle:
    """The dense model at full size, whose layers are masked and refitted one after the other."""

    def __init__(self, masked: Masked) -> None:
        self.masked, self.tokens = masked, calibration()
        self.plus_one = float(masked.model.config.norm_type == "rms_plus_one")

    def compress(
        self, number: int, plan: LayerPlan, selections: ResidualPartSelections | None = None
    ) -> None:
        """Compress a layer by trained selections, or by those of moments and energies."""
        layer, sizes = self.masked.layers[number], plan.residual_parts
        assert sizes is not None

        def chosen(name: str) -> list[int] | None:
            return None if selections is None else getattr(selections, name).tolist()

        attention, mlp = layer.self_attn, layer.mlp
        full = self._inner(number, "attention")
        with torch.no_grad():
            readers = [attention.q_proj, attention.k_proj, attention.v_proj]
            self._read(number, readers, sizes.attention_reads, chosen("attention_reads"))
            norm, everything = layer.attention_output_norm, list(range(full.shape[1]))
            inner = self._inner(number, "attention")
            written = sizes.attention_writes, chosen("attention_writes")
            self._write(attention.o_proj, norm, full, inner, everything, *written)
            full = self._inner(number, "mlp")
            gate = [] if mlp.gate_proj is None else [mlp.gate_proj]
            self._read(number, [*gate, mlp.up_proj], sizes.mlp_reads, chosen("mlp_reads"))
            inner, norm = self._inner(number, "mlp"), layer.mlp_output_norm
            neurons = chosen("neurons") or self._neurons(
                mlp.down_proj, norm, full, inner, plan.intermediate_size
            )
            written = sizes.mlp_writes, chosen("mlp_writes")
            self._write(mlp.down_proj, norm, full, inner, neurons, *written)

    def _inner(self, number: int, module: str) -> Tensor:
        return self.masked.inputs(self.tokens)[number, module].flatten(0, 1)

    def _read(
        self, number: int, linears: list[nn.Linear], keep: int, chosen: list[int] | None
    ) -> None:
        """Zero the columns of what is not read and refit the others."""
        caught: list[Tensor] = []
        handle = linears[-1].register_forward_pre_hook(
            lambda _module, arguments: caught.append(arguments[0].detach().double())
        )
        logits(self.masked.model, self.tokens)
        handle.remove()
        inputs = caught[0].flatten(0, 1)
        hidden = inputs.shape[1]
        weight = torch.cat([linear.weight.double().T for linear in linears], 1)
        columns = chosen or most_needed(second_moment(inputs), weight, keep)
        if linears[0].bias is not None:
            inputs = with_ones(inputs)
            biases = torch.cat([linear.bias.double() for linear in linears])
            weight = torch.cat((weight, biases[None]))
            columns = [*columns, hidden]
        fitted = fitted_to(inputs[:, columns], inputs @ weight, weight[columns])
        whole = torch.zeros_like(weight)
        whole[columns] = fitted
        parts = whole.split([len(linear.weight) for linear in linears], 1)
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.copy_(part[:hidden].T.float())
            if linear.bias is not None:
                linear.bias.copy_(part[hidden].float())

    def _regression(
        self, linear: nn.Linear, norm: nn.Module | None, full: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs, target, prior and the scale of the columns, with a norm divided by rms."""
        weight = linear.weight.double().T
        if linear.bias is not None:
            full, inner = with_ones(full), with_ones(inner)
            weight = torch.cat((weight, linear.bias.double()[None]))
        target, scale = full @ weight, torch.ones(weight.shape[1], dtype=weight.dtype)
        if norm is not None:
            rms = (target**2).mean(1, keepdim=True).add(self.masked.model.config.norm_eps).sqrt()
            target, inner = target / rms, inner / rms
            scale = norm.weight.double() + self.plus_one
        return inner, target, weight, scale

    def _neurons(
        self, linear: nn.Linear, norm: nn.Module | None, full: Tensor, inner: Tensor, keep: int
    ) -> list[int]:
        inputs, target, prior, scale = self._regression(linear, norm, full, inner)
        width = inner.shape[1]
        fitted = fitted_to(inputs, target, prior) * scale
        return most_needed(second_moment(inputs)[:width, :width], fitted[:width], keep)

    def _write(
        self,
        linear: nn.Linear,
        norm: nn.Module | None,
        full: Tensor,
        inner: Tensor,
        neurons: list[int],
        keep: int,
        chosen: list[int] | None,
    ) -> None:
        """Refit a projection of some inputs and zero the rows of least energy."""
        inputs, target, prior, scale = self._regression(linear, norm, full, inner)
        columns = neurons + list(range(inner.shape[1], inputs.shape[1]))
        fitted = fitted_to(inputs[:, columns], target, prior[columns])
        energy = ((inputs[:, columns] @ fitted) ** 2).mean(0) * scale**2
        written = chosen or energy.argsort(descending=True)[:keep].tolist()
        whole = torch.zeros_like(prior)
        for position, column in enumerate(columns):
            whole[column, written] = fitted[position, written]
        linear.weight.copy_(whole[: inner.shape[1]].T.float())
        if linear.bias is not None:
            linear.bias.copy_(whole[-1].float())


@pytest.mark.parametrize(
    ("variant", "training"),
    [
        *((variant, None) for variant in VARIANTS),
        *((variant, TRAINED) for variant in TRAINED_VARIANTS),
    ],
)
def test_result_is_the_dense_model_with_masked_reads_and_writes_refitted_at_full_size(
    tmp_path: Path, variant: str, training: dict[str, Any] | None, chosen: list[Shapes]
) -> None:
    dense = checkpoint_of(variant, tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(mask_training=training))
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)
    assert report.allocation is not None
    assert report.allocation.allocator == ("hypernetwork" if training else "uniform")
    selections = chosen[0].residual_parts or (None,) * len(report.plan.layers)
    oracle = Oracle(Masked.of(dense, tmp_path / "canonical"))
    for number, plan in enumerate(report.plan.layers):
        oracle.compress(number, plan, selections[number])
    expected = logits(oracle.masked.model, oracle.tokens)
    actual = logits(loaded(tmp_path / "out"), oracle.tokens)
    error = float((actual - expected).norm() / expected.norm())
    # The dimensions of a LayerNorm sum to zero: any one of them may be replaced by the others.
    assert error < 3e-3, error


@pytest.mark.parametrize("variant", ["llama", "phi", "gemma2"])
def test_files_hold_what_is_read_and_written_alone(tmp_path: Path, variant: str) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    report = compress_unverified(dense, tmp_path / "out", config())
    model = loaded(tmp_path / "out")
    assert sum(weight.numel() for weight in model.parameters()) == report.params_after
    sizes = report.plan.layers[0].residual_parts
    assert sizes is not None
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert attention.q_proj.weight.shape[1] == sizes.attention_reads < 48
    assert attention.o_proj.weight.shape[0] == sizes.attention_writes < 48
    assert mlp.up_proj.weight.shape[1] == sizes.mlp_reads < 48
    assert mlp.down_proj.weight.shape[0] == sizes.mlp_writes < 48
    seen = {
        spectrum.dimension
        for layer in report.layers
        for module in (layer.attention, layer.mlp)
        for spectrum in module.spectra
    }
    assert seen == {
        *("attention reads", "attention writes", "MLP reads", "MLP writes", "MLP neurons")
    }


def test_saved_models_generate_with_a_cache_as_without(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    compress_unverified(dense, tmp_path / "out", config())
    model, tokens = loaded(tmp_path / "out"), other_tokens()[:, :8]
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(tokens, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **settings))


def test_results_are_read_as_dense_models_with_zeros(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config())
    with CheckpointReader(tmp_path / "out") as reader:
        geometry = reader.family.geometry(reader.config)
        assert geometry.input_layers == report.plan.layers
        prefix = reader.family.layer_prefix(1)
        shapes = reader.family.stored_shapes(reader.config, 1)
        tensors = {name: reader.tensor(prefix + name) for name in shapes}
        whole = reader.family.canonical_layer(reader.config, 1, tensors)
    sizes = report.plan.layers[1].residual_parts
    assert sizes is not None
    query, output = whole["self_attn.q_proj.weight"], whole["self_attn.o_proj.weight"]
    assert int((query != 0).any(0).sum()) == sizes.attention_reads
    assert int((output != 0).any(1).sum()) == sizes.attention_writes
    assert query.shape[1] == output.shape[0] == 48


def redundant_model() -> nn.Module:
    """Return a model whose modules read nothing of some dimensions and add nothing to others."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linears, count in (
                ((attention.q_proj, attention.k_proj, attention.v_proj), 24),
                ((mlp.gate_proj, mlp.up_proj), 14),
            ):
                unread = torch.randperm(48, generator=generator)[:count]
                for linear in linears:
                    linear.weight[:, unread] = 0.0
            for linear, count in ((attention.o_proj, 24), (mlp.down_proj, 14)):
                linear.weight[torch.randperm(48, generator=generator)[:count]] = 0.0
            mlp.gate_proj.weight[1::2] = mlp.gate_proj.weight[::2]
            mlp.up_proj.weight[1::2] = 0.4 * mlp.up_proj.weight[::2]
    return model


def test_planted_redundancy_is_removed_without_loss(tmp_path: Path) -> None:
    model = redundant_model()
    dense = save_checkpoint(model, tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(ratio=0.5))
    for layer in report.plan.layers:
        sizes = layer.residual_parts
        assert sizes is not None
        assert (sizes.attention_reads, sizes.attention_writes) == (24, 24)
        assert (sizes.mlp_reads, sizes.mlp_writes) == (34, 34)
        assert layer.intermediate_size >= 32
    expected = logits(model, other_tokens())
    actual = logits(loaded(tmp_path / "out"), other_tokens())
    assert float((actual - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_every_module_loses_the_ratio(tmp_path: Path, ratio: float) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    report = compress_unverified(dense, tmp_path / "out", config(ratio=ratio))
    whole = report.geometry.dense_layer()
    for layer in report.plan.layers:
        attention = layer.attention_parameters(report.geometry)
        assert attention / whole.attention_parameters(report.geometry) == pytest.approx(
            1.0 - ratio, abs=0.03
        )
        sizes = layer.residual_parts
        assert sizes is not None
        assert sizes.mlp_reads / 48 == pytest.approx(math.sqrt(1.0 - ratio), abs=0.03)
    assert report.removed_fraction == pytest.approx(ratio, abs=0.005)


def test_numerical_trouble_names_layer_and_module(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1e30
    dense = save_checkpoint(model, tmp_path / "dense")
    with pytest.raises(NumericalError) as caught:
        compress_unverified(dense, tmp_path / "out", config())
    assert (caught.value.layer, caught.value.module) == (1, "mlp")


def test_a_layer_has_a_sliced_stream_or_parts_of_a_whole_one() -> None:
    widths = ResidualWidths(attention=8, mlp=8, output=16)
    parts = ResidualParts(attention_reads=8, attention_writes=8, mlp_reads=8, mlp_writes=16)
    sizes = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "qk_pairs"), 2)
    plan = LayerPlan(**sizes, v_head_dim=4, intermediate_size=32, residual_parts=parts)
    with pytest.raises(ValidationError, match="residual and residual_parts exclude each other"):
        LayerPlan.model_validate(plan.model_dump() | {"residual": widths.model_dump()})


def test_results_are_not_compressed_again(tmp_path: Path) -> None:
    compress_unverified(tiny_llama(tmp_path / "dense"), tmp_path / "once", config())
    with pytest.raises(ConfigurationError, match="disp does not take a model that was"):
        compress_unverified(tmp_path / "once", tmp_path / "twice", config())
    with pytest.raises(ConfigurationError, match="parts of the residual stream") as caught:
        compress_unverified(tmp_path / "once", tmp_path / "twice", config(method="magnitude"))
    assert caught.value.field == "model"
