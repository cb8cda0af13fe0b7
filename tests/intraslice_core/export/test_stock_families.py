"""Target `stock` writes every family in its own class, with the dimensions that the class takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import estimate
from intraslice_core.export.stock import layer_in_family_form
from intraslice_core.families.adapter import family_for
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.export.models import CALIBRATION, config, load, logits
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_family_model,
)

UNUSED_PAIRS = (1, 4)
WIDTH = 44
GEMMA_PATTERN = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def cut(model: PreTrainedModel, **sizes: int) -> LayerPlan:
    geometry = family_for(model.config).geometry(model.config)
    return geometry.dense_layer().model_copy(update={"intermediate_size": WIDTH} | sizes)


def compress_to(
    model: PreTrainedModel, layer: LayerPlan, folder: Path, **settings: Any
) -> CompressionReport:
    """Compress a model whose other dimensions are unused; check that they are found."""
    save_checkpoint(model, folder / "dense")
    geometry = family_for(model.config).geometry(model.config)
    plan = ModelPlan(layers=(layer,) * geometry.num_hidden_layers)
    ratio = plan.removed_fraction(geometry)
    requested = config("stock", round_to=2, ratio=ratio, **settings)
    report = compress_model(str(folder / "dense"), folder / "out", requested, verify=False)
    assert report.plan == plan
    stock = load(folder / "out")
    assert type(stock) is type(model)
    assert not list((folder / "out").glob("*.py"))
    torch.testing.assert_close(logits(stock), logits(model), atol=1e-3, rtol=0.0)
    return report


def plant_narrow_mlp(model: PreTrainedModel) -> None:
    family, tensors = family_for(model.config), dict(model.named_parameters())
    with torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            name = family.checkpoint_name("mlp.down_proj.weight")
            tensors[family.layer_prefix(layer) + name][:, WIDTH:] = 0.0


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("qwen3", {"head_dim": 16}),
        ("gemma2", {"head_dim": 16}),
        ("gemma3", GEMMA_PATTERN),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            }
            | GEMMA_PATTERN,
        ),
    ],
)
def test_normed_and_scaled_heads_lose_unused_pairs_without_loss(
    variant: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_family_model(variant, **overrides)
    plant_narrow_mlp(model)
    unused = torch.tensor([*UNUSED_PAIRS, *(pair + 8 for pair in UNUSED_PAIRS)])
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                for tensor in projection.parameters():
                    tensor.view(-1, 16, *tensor.shape[1:])[:, unused] = 0.0
    pairs = 8 - len(UNUSED_PAIRS)
    compress_to(model, cut(model, qk_pairs=pairs, v_head_dim=2 * pairs), tmp_path)


FIXED = ("phi_grouped", "phi3_longrope", "gpt_neox", "glm4", "granite4", "olmo2", "opt")
"""Families with other names, fused projections, row orders, norms and settings than Llama."""


@pytest.mark.parametrize("variant", FIXED)
def test_families_of_fixed_head_dim_lose_only_neurons(variant: str, tmp_path: Path) -> None:
    model = tiny_family_model(variant)
    plant_narrow_mlp(model)
    compress_to(model, cut(model), tmp_path)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.get("rope_parameters") == getattr(model.config, "rope_parameters", None)


def test_unused_heads_are_removed_from_all_layers(tmp_path: Path) -> None:
    model = tiny_family_model("qwen3", head_dim=16)
    plant_narrow_mlp(model)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            first = 32 * (index % 2)  # one of two KV groups, another one in the next layer
            layer.self_attn.o_proj.weight[:, first : first + 32] = 0.0
    layer = cut(model, num_attention_heads=2, num_key_value_heads=1)
    # On the model's own text, unlike on others, no other shapes have less loss.
    own_text = CALIBRATION.model_copy(update={"source": "self"})
    compress_to(model, layer, tmp_path, module_cap=1.0, calibration=own_text)


@pytest.mark.parametrize("variant", ["qwen3", "gemma2", "gemma3", "phi3", "phi"])
def test_gguf_export_keeps_the_head_dim(variant: str) -> None:
    model = tiny_family_model(variant)
    geometry, model_type = geometry_of(model), model.config.model_type
    settings = CompressionConfig.model_validate(
        {"target": "stock", "ratio": 0.3, "round_to": 2, "exports": ("safetensors", "gguf-f16")}
    )
    layer = estimate(geometry, 4, settings, None, model_type).first_layer
    assert (layer.qk_head_dim, layer.v_head_dim) == (geometry.head_dim, geometry.head_dim)
    assert layer.intermediate_size < geometry.intermediate_size


def geometry_of(model: PreTrainedModel) -> ModelGeometry:
    return family_for(model.config).geometry(model.config)


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_family_form_inverts_the_canonical_form(variant: str) -> None:
    model = tiny_family_model(variant)
    family = family_for(model.config)
    prefix = family.layer_prefix(1)
    layer = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    canonical = family.canonical_layer(model.config, 1, layer)
    own = layer_in_family_form(family, model.config, 1, canonical)
    assert own.keys() == layer.keys()
    for name, tensor in layer.items():
        assert torch.equal(own[name], tensor), name
