"""Proof 2: a planted low-rank model is compressed to its planted sizes without loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.families.adapter import family_for, half_split_order
from intraslice_core.families.canonical import rotates, rotating_dims
from intraslice_core.plan import LayerPlan
from intraslice_core.sensitivity import measurement
from intraslice_core.sensitivity.measurement import _LayerPass
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    decoder_layers,
    save_checkpoint,
    tiny_family_model,
    tiny_tokenizer,
)

RATIO, ROUND_TO = 0.25, 2
# Neurons with ReLU that fire in few tokens of the calibration cost less than the damping of the
# choice, so they would be removed before exact duplicates.
OVERRIDES = {"opt": {"activation_function": "gelu"}}


def parts(layer: torch.nn.Module, rows: tuple[int, int, int, int]) -> dict[str, list[Tensor]]:
    """Return views of weights and biases of q, k, v, gate and up, rows first."""
    attention = getattr(layer, "attention", None) or layer.self_attn
    mlp = getattr(layer, "mlp", layer)

    def of(*modules: torch.nn.Module) -> list[list[Tensor]]:
        present = [[p for p in (m.weight, m.bias) if p is not None] for m in modules]
        return [[p.view(p.shape[0], -1) for p in each] for each in present]

    if hasattr(attention, "qkv_proj"):
        (qkv,), (both,) = of(attention.qkv_proj), of(mlp.gate_up_proj)
        queries, groups, _, width = rows
        q, k, v = qkv[0].split([queries, groups, groups])
        gate, up = both[0].split(width)
        return {"q": [q], "k": [k], "v": [v], "neurons": [gate, up]}
    if hasattr(attention, "query_key_value"):
        thirds = [rows.chunk(3) for rows in of(attention.query_key_value)[0]]
        q, k, v = ([third[part] for third in thirds] for part in range(3))
    else:
        q, k, v = of(attention.q_proj, attention.k_proj, attention.v_proj)
    if hasattr(mlp, "gate_up_proj"):
        return {"q": q, "k": k, "v": v, "neurons": list(of(mlp.gate_up_proj)[0][0].chunk(2))}
    names = ("fc1", "c_fc", "dense_h_to_4h", "gate_proj", "up_proj")
    first = [getattr(mlp, name) for name in names if hasattr(mlp, name)]
    return {"q": q, "k": k, "v": v, "neurons": [p for each in of(*first) for p in each]}


def regroup_fused(layer: torch.nn.Module, *shape: int) -> None:
    """Exchange the first two dimensions of fused rows of the given shape (GPT-NeoX), in place."""
    attention = getattr(layer, "attention", None)
    if attention is not None:
        for rows in (attention.query_key_value.weight, attention.query_key_value.bias):
            rows.copy_(rows.view(*shape, -1).transpose(0, 1).reshape(rows.shape))


def plant(model: PreTrainedModel, plans: tuple[LayerPlan, ...]) -> PreTrainedModel:
    """Confine values to a subspace, zero rotary pairs and duplicate neurons of every layer."""
    generator = torch.Generator().manual_seed(5)
    family = family_for(model.config)
    geometry, settings = (
        family.geometry(model.config),
        family.canonical_settings(model.config),
    )
    width, groups = geometry.head_dim, geometry.num_key_value_heads
    sizes = (geometry.num_attention_heads * width, groups * width, 0, geometry.intermediate_size)
    order = half_split_order(
        width,
        rotating_dims(settings, settings["layer_types"][0]),
        interleaved=family.family.interleaved_rotary,
    )
    with torch.no_grad():
        for index, (layer, plan) in enumerate(zip(decoder_layers(model), plans, strict=True)):
            regroup_fused(layer, groups, 3, width)
            projections = parts(layer, sizes)
            basis = torch.randn(groups, width, plan.v_head_dim, generator=generator)
            basis = torch.linalg.qr(basis).Q
            for values in projections["v"]:
                heads = values.view(groups, width, -1)
                heads.copy_(basis @ basis.mT @ heads)
            if not rotates(settings, index) and not geometry.qk_norm:
                confine_keys(projections["k"], groups, width, plan.qk_head_dim)
                projections["k"] = []
            # A query norm depends on all its pairs, whether or not the key has them.
            for rows in projections["k"] + projections["q"] * geometry.qk_norm:
                heads = rows.view(
                    -1, groups, rows.shape[0] // groups // width, width, rows.shape[1]
                )
                zero_pairs(heads.squeeze(0), order, plan.qk_pairs)
            shuffled = torch.randperm(geometry.intermediate_size, generator=generator)
            copies = shuffled[plan.intermediate_size :]
            for rows in projections["neurons"]:
                rows[copies] = rows[shuffled[: copies.shape[0]]]
            regroup_fused(layer, 3, groups, width)
    return model


def confine_keys(keys: list[Tensor], groups: int, width: int, keep: int) -> None:
    """Confine keys to a subspace of `keep` dimensions that no choice of pairs spans.

    Args:
        keys: weight and bias of k, (groups · width, columns), modified in place.
        groups: KV heads.
        width: dimensions of a head.
        keep: dimensions of the subspace.
    """
    drawn = torch.randn(groups, width, keep, generator=torch.Generator().manual_seed(7))
    basis = torch.linalg.qr(drawn).Q
    for rows in keys:
        heads = rows.view(groups, width, -1)
        heads.copy_(basis @ basis.mT @ heads)


def zero_pairs(heads: Tensor, order: Tensor, keep: int) -> None:
    """Zero all but `keep` pairs, different ones in every group.

    Args:
        heads: (groups, heads, head_dim, columns), modified in place.
        order: dimensions in half-split order.
        keep: pairs to keep.
    """
    pairs = order.shape[0] // 2
    for group in range(heads.shape[0]):
        removed = [(pair + group) % pairs for pair in range(keep, pairs)]
        heads[group][:, order[removed + [pair + pairs for pair in removed]]] = 0


def planted_config() -> CompressionConfig:
    return CompressionConfig(
        ratio=RATIO,
        round_to=ROUND_TO,
        allocation="uniform",
        calibration=CalibrationConfig(source="pydoc", samples=256, sequence_length=64),
    )


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_planted_model_loses_nothing_on_held_out_text(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With shrunken correlations even an exact duplicate costs a share of its energy.
    monkeypatch.setattr(measurement, "CHOICE_SHRINKAGE", 0.0)
    overrides = OVERRIDES.get(variant, {})
    model = tiny_family_model(variant, initializer_range=0.15, **overrides)
    geometry = family_for(model.config).geometry(model.config)
    planned = uniform_plan(geometry, RATIO, ROUND_TO)
    dense = save_checkpoint(plant(model, planned.layers), tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", planted_config())
    assert report.plan == planned
    assert largest_difference(model, tmp_path / "out") <= 1e-3


def largest_difference(model: PreTrainedModel, out: Path) -> float:
    """Return the largest difference of any logit on held-out text."""
    sliced = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokens = evaluation_tokens("pydoc", tiny_tokenizer(), 8 * 64).view(8, 64)
    with torch.no_grad():
        return float((sliced(tokens).logits - model(tokens).logits).abs().max())


def test_pairs_lose_what_a_basis_without_rope_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted subspace of the keys is no selection of pairs."""
    model = tiny_family_model("smollm3", initializer_range=0.15)
    planned = uniform_plan(family_for(model.config).geometry(model.config), RATIO, ROUND_TO)
    dense = save_checkpoint(plant(model, planned.layers), tmp_path / "dense")
    monkeypatch.setattr(_LayerPass, "has_free_basis", False)
    compress_unverified(dense, tmp_path / "out", planted_config())
    assert largest_difference(model, tmp_path / "out") > 0.1
