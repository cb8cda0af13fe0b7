"""Comparison of checkpoints up to the freedom that their weights have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from intraslice_core.plan import ModelPlan
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

TOLERANCE = 2e-4
"""Largest difference of a tensor, relative to its largest element; 5e-5 was measured."""
LOOSE_TOLERANCE = 1e-3
"""The same where rounding is amplified, by trained masks or bases of the residual stream."""
_VALUE, _OUTPUT = "self_attn.v_proj.weight", "self_attn.o_proj.weight"


def report_in(place: Path) -> CompressionReport:
    """Return the report of a checkpoint."""
    return CompressionReport.model_validate_json((place / REPORT_FILE).read_bytes())


def assert_same_model(place: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    """Raise unless two checkpoints have one plan, and weights that are equal up to rounding."""
    plan = report_in(expected).plan
    assert report_in(place).plan == plan
    weights, others = (load_file(each / "model.safetensors") for each in (expected, place))
    assert others.keys() == weights.keys()
    tensors = effective_tensors(others, plan)
    for name, tensor in effective_tensors(weights, plan).items():
        assert tensors[name].shape == tensor.shape, name
        difference = (tensors[name].double() - tensor.double()).abs().amax()
        assert difference <= tolerance * tensor.abs().amax(), (name, float(difference))


def effective_tensors(weights: Mapping[str, Tensor], plan: ModelPlan) -> dict[str, Tensor]:
    """Return the tensors that decide what a model without biases of its values computes.

    The basis of a KV group's values is free: its vectors have either sign, and those of equal
    variance may be turned. Query head h of group g maps normed hidden states to the output by
    O_h V_g, which no basis changes. The products, (num_attention_heads, hidden_size, hidden_size)
    in float64, stand for both projections; all other tensors are compared as they are.
    """
    tensors = dict(weights)
    for number, layer in enumerate(plan.result_layers):
        prefix = f"model.layers.{number}."
        if layer.num_attention_heads == 0 or layer.v_head_dim == 0:
            continue
        value, output = (tensors.pop(prefix + name).double() for name in (_VALUE, _OUTPUT))
        by_group = value.unflatten(0, (layer.num_key_value_heads, layer.v_head_dim))
        queries = layer.num_attention_heads // layer.num_key_value_heads
        by_head = by_group.repeat_interleave(queries, dim=0)
        heads = output.unflatten(1, (layer.num_attention_heads, layer.v_head_dim))
        tensors[prefix + "self_attn"] = torch.einsum("ohv,hvi->hoi", heads, by_head)
    return tensors
