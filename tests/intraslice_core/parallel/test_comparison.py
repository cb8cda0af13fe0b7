"""The comparison accepts the freedom of a basis and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intraslice_core.plan import LayerPlan, ModelPlan
from tests.intraslice_core.parallel.comparison import effective_tensors
from tests.intraslice_core.tiny_models import tiny_llama

HEADS, GROUPS, WIDTH = 4, 2, 16
VALUE, OUTPUT = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "vo")


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that differ by more than rounding."""
    layer = LayerPlan(
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        qk_pairs=WIDTH // 2,
        v_head_dim=WIDTH,
        intermediate_size=1,
    )
    plan = ModelPlan(layers=(layer,) * 3)
    others = effective_tensors(second, plan)
    return [
        name
        for name, tensor in effective_tensors(first, plan).items()
        if not torch.allclose(others[name], tensor, atol=1e-6)
    ]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_llama(tmp_path / "dense") / "model.safetensors")


def test_turned_values_with_outputs_turned_back_are_the_same_model(
    weights: dict[str, torch.Tensor],
) -> None:
    turned = {name: tensor.clone() for name, tensor in weights.items()}
    for group in range(GROUPS):
        basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
        rows = slice(group * WIDTH, (group + 1) * WIDTH)
        turned[VALUE][rows] = basis @ weights[VALUE][rows]
        for head in range(group * HEADS // GROUPS, (group + 1) * HEADS // GROUPS):
            columns = slice(head * WIDTH, (head + 1) * WIDTH)
            turned[OUTPUT][:, columns] = weights[OUTPUT][:, columns] @ basis.T
    assert not torch.allclose(turned[VALUE].abs(), weights[VALUE].abs(), atol=1e-3)
    assert differing(weights, turned) == []


def test_a_sign_that_only_one_of_both_projections_has_is_another_model(
    weights: dict[str, torch.Tensor],
) -> None:
    other = {name: tensor.clone() for name, tensor in weights.items()}
    other[VALUE][3] *= -1.0
    assert differing(weights, other) == ["model.layers.1.self_attn"]
