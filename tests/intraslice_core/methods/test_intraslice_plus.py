"""IntraSlice+ against an oracle that projects, masks and refits at full size in float64.

What stays is the engine's choice (its parts have oracles of their own in `selection` and
`sensitivity`); how strongly a refit is damped is read from the report (`test_compensation`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.allocation.context import Shapes
from intraslice_core.config import CompressionConfig
from intraslice_core.plan import LayerPlan
from intraslice_core.reports.schema import LayerReport
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    Masked,
    checkpoint_of,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.methods.test_spp import Oracle

FLOOR = 1e-6
"""Least damping of a dimension, relative to the mean of all."""


class DenseTargets(Oracle):
    """The dense model whose layers are refitted towards the hidden states of an untouched copy."""

    def __init__(self, masked: Masked, untouched: Masked) -> None:
        super().__init__(masked)
        self.untouched = untouched

    def compress_layer(
        self, number: int, plan: LayerPlan, order: LayerSensitivity, report: LayerReport
    ) -> None:
        """Compress one layer as the saved model computes it."""
        layer = self.masked.layers[number]
        full = self._inner(number, "attention")
        with torch.no_grad():
            if plan.qk_pairs < order.pair_moment.shape[-1] // 2:
                self._cut_pairs(number, order.pairs(plan.qk_pairs).kept, order.pair_moment)
            columns = self._kept_columns(plan, order)
            self._refit_to_dense(number, "attention", layer.self_attn.o_proj, full, columns, report)
            neurons = order.neurons(plan.intermediate_size)
            inner = self._inner(number, "mlp")
            columns = torch.eye(inner.shape[1], dtype=inner.dtype)[:, neurons]
            self._refit_to_dense(number, "mlp", layer.mlp.down_proj, inner, columns, report)

    def _kept_columns(self, plan: LayerPlan, order: LayerSensitivity) -> Tensor:
        """Return the value bases of the heads that stay, (heads · head_dim, kept), float64."""
        copies = self.masked.heads // self.masked.groups
        bases = order.basis(plan.v_head_dim).double()
        if plan.v_head_dim == bases.shape[1]:  # whole values keep their coordinates
            bases = torch.eye(plan.v_head_dim, dtype=bases.dtype).expand_as(bases)
        blocks = bases.repeat_interleave(copies, 0)
        columns = torch.block_diag(*blocks).view(len(blocks) * blocks.shape[1], len(blocks), -1)
        heads = list(range(self.masked.heads))
        if plan.num_attention_heads < self.masked.heads:
            stay = plan.num_key_value_heads
            chosen = order.heads(stay, plan.num_attention_heads // stay)
            within = chosen.queries.expand(stay, -1).tolist()
            heads = [
                group * copies + query
                for group, own in zip(chosen.groups.tolist(), within, strict=True)
                for query in own
            ]
            assert len(heads) == plan.num_attention_heads
        return columns[:, heads].flatten(1)

    def _refit_to_dense(
        self,
        number: int,
        module: str,
        linear: nn.Module,
        full: Tensor,
        columns: Tensor,
        report: LayerReport,
    ) -> None:
        """Refit an output projection to its own output, then to what the dense model has more.

        Args:
            number: of the layer.
            module: attention or mlp.
            linear: the projection, which stays at full size.
            full: inputs of the dense module on the compressed hidden states, (tokens, width).
            columns: orthonormal ones that stay, (width, kept).
            report: of the layer, for the dampings.
        """
        rows = linear.weight.double().T
        own = full @ rows
        before = states(self.masked, self.tokens)[number, module]
        after = states(self.untouched, self.tokens)[number, f"after {module}"]
        inner = self._inner(number, module) @ columns
        prior = columns.T @ rows
        moment = inner.T @ inner / len(inner)
        damping = getattr(report, module).damping
        strength = torch.maximum(moment.diagonal(), FLOOR * moment.diagonal().mean()).diag()
        fitted = prior + torch.linalg.solve(
            moment + damping["own"] * strength,
            inner.T @ own / len(inner) - moment @ prior,
        )
        fitted += torch.linalg.solve(
            moment + damping["correction"] * strength,
            inner.T @ (after - before - own) / len(inner),
        )
        linear.weight.copy_((columns @ fitted).T.float())


def states(model: Masked, tokens: Tensor) -> dict[tuple[int, str], Tensor]:
    """Return the residual stream before and after both modules of every layer, (tokens, hidden)."""
    streams: dict[tuple[int, str], Tensor] = {}
    handles = []
    for number, layer in enumerate(model.layers):

        def before(_module, arguments, number=number):
            streams[number, "attention"] = arguments[0].detach().double().flatten(0, 1)

        def attention(_module, _arguments, out, number=number):
            added = out.detach().double().flatten(0, 1)
            after = streams[number, "attention"] + added
            streams[number, "after attention"] = streams[number, "mlp"] = after

        def mlp(_module, _arguments, out, number=number):
            added = out.detach().double().flatten(0, 1)
            streams[number, "after mlp"] = streams[number, "mlp"] + added

        handles += [
            layer.register_forward_pre_hook(before),
            layer.self_attn.o_proj.register_forward_hook(attention),
            layer.mlp.down_proj.register_forward_hook(mlp),
        ]
    logits(model.model, tokens)
    for handle in handles:
        handle.remove()
    return streams


@pytest.mark.parametrize("variant", ["llama", "mistral", "one KV head", "multi-head"])
def test_result_is_the_dense_model_projected_and_refitted_at_full_size(
    tmp_path: Path, variant: str, chosen: list[Shapes]
) -> None:
    dense = checkpoint_of(variant, tmp_path / "dense")
    settings = CompressionConfig(
        ratio=0.3,
        calibration=CALIBRATION.model_copy(update={"self_share": 0.0}),
        round_to=1,
    )
    report = compress_unverified(dense, tmp_path / "out", settings)
    assert settings.method == report.method == "intraslice_plus"
    assert report.removed_fraction == pytest.approx(0.3, abs=0.005)
    (shapes,) = chosen
    assert shapes.sensitivity is not None
    oracle = DenseTargets(
        Masked.of(dense, tmp_path / "canonical"), Masked.of(dense, tmp_path / "untouched")
    )
    for layer, order in zip(report.layers, shapes.sensitivity, strict=True):
        oracle.compress_layer(layer.layer, layer.plan, order, layer)
    expected = logits(oracle.masked.model, other_tokens())
    actual = logits(loaded(tmp_path / "out"), other_tokens())
    untouched = logits(oracle.untouched.model, other_tokens())
    error = float((actual - expected).norm() / expected.norm())
    assert error < 1e-4, error
    assert float((actual - untouched).norm() / untouched.norm()) > 0.05
