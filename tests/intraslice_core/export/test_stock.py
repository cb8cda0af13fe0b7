"""Target `stock` writes checkpoints of the dense architecture that load without custom code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.export.targets import require_target
from intraslice_core.families.adapter import family_for
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import LayerPlan, ModelPlan, total_parameters
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.tiny_models import (
    VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_family_model,
    tiny_llama,
    tiny_model,
)

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)
TOKENS = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(1))
UNUSED_PAIRS = (1, 4)
"""Rotary pairs that no head of a planted model uses."""
WIDTH = 44
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
PLANTED: dict[str, dict[str, Any]] = {
    "biased": VARIANTS["biased"] | VARIANTS["multi_head"],
    "llama3_rope": VARIANTS["llama3_rope"] | VARIANTS["untied"],
    "yarn": {"rope_parameters": YARN | {"original_max_position_embeddings": 64}},
}


def config(**settings: Any) -> CompressionConfig:
    common = {"target": "stock", "round_to": 2, "dtype": "float32", "calibration": CALIBRATION}
    return CompressionConfig.model_validate(common | settings)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model(input_ids=TOKENS).logits
    return output


def load(directory: Path) -> PreTrainedModel:
    """Load the checkpoint without allowing code from it."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False
    ).eval()


def plant(model: PreTrainedModel) -> None:
    """Set exactly the weights to zero that the shapes of `planted_plan` cannot hold."""
    head_dim, half = 16, 8
    unused = torch.tensor([*UNUSED_PAIRS, *(pair + half for pair in UNUSED_PAIRS)])
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                for tensor in projection.parameters():
                    tensor.view(-1, head_dim, *tensor.shape[1:])[:, unused] = 0.0
            mlp.down_proj.weight[:, WIDTH:] = 0.0


def planted_plan(report_geometry: Any) -> ModelPlan:
    layer = LayerPlan(
        num_attention_heads=report_geometry.num_attention_heads,
        num_key_value_heads=report_geometry.num_key_value_heads,
        qk_pairs=8 - len(UNUSED_PAIRS),
        v_head_dim=16 - 2 * len(UNUSED_PAIRS),
        intermediate_size=WIDTH,
    )
    return ModelPlan(layers=(layer,) * report_geometry.num_hidden_layers)


def compress_planted(model: PreTrainedModel, folder: Path) -> CompressionReport:
    plant(model)
    save_checkpoint(model, folder / "dense")
    geometry = family_for(model.config).geometry(model.config)
    size = total_parameters(geometry, planted_plan(geometry))
    settings = config(target_params=size)
    report = compress_model(str(folder / "dense"), folder / "out", settings, verify=False)
    assert report.plan == planted_plan(geometry)
    return report


@pytest.mark.parametrize("variant", PLANTED)
def test_removing_unused_dimensions_is_lossless(variant: str, tmp_path: Path) -> None:
    model = tiny_model(**PLANTED[variant])
    compress_planted(model, tmp_path)
    stock = load(tmp_path / "out")
    assert type(stock) is type(model)
    torch.testing.assert_close(logits(stock), logits(model), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("variant", ["mistral", "qwen2"])
def test_removing_unused_dimensions_of_other_families_is_lossless(
    variant: str, tmp_path: Path
) -> None:
    model = tiny_family_model(variant, head_dim=16)
    compress_planted(model, tmp_path)
    stock = load(tmp_path / "out")
    assert type(stock) is type(model)
    torch.testing.assert_close(logits(stock), logits(model), atol=1e-3, rtol=0.0)


def test_ratio_zero_gives_the_dense_model(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "dense")
    compress_model(str(tmp_path / "dense"), tmp_path / "out", config(ratio=0.0), verify=False)
    torch.testing.assert_close(
        logits(load(tmp_path / "out")), logits(load(tmp_path / "dense")), atol=1e-4, rtol=0.0
    )


def test_checkpoint_has_one_shape_and_generates(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "dense")
    settings = config(ratio=0.5, module_cap=0.55)
    report = compress_model(str(tmp_path / "dense"), tmp_path / "out", settings)
    assert len(set(report.plan.layers)) == 1
    shape = report.plan.layers[0]
    assert shape.v_head_dim == shape.qk_head_dim
    assert report.plan.removed_fraction(report.geometry) == pytest.approx(0.5, abs=0.02)
    assert report.allocation is not None
    assert report.allocation.unconstrained_calibration_loss is not None
    assert report.allocation.calibration_loss is not None
    assert not list((tmp_path / "out").glob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "out" / "README.md").read_text()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in written
    assert (written["head_dim"], written["intermediate_size"]) == (
        shape.qk_head_dim,
        shape.intermediate_size,
    )
    assert written["rope_parameters"]["rope_type"] == "longrope"
    model, options = load(tmp_path / "out"), {"max_new_tokens": 12, "do_sample": False}
    cached, plain = (model.generate(TOKENS, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, plain)


def test_models_and_methods_that_the_target_does_not_support_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"does not support mamba models.*llama"
    ) as rejected:
        require_target(config(), "mamba")
    assert rejected.value.field == "compression.target"
    tiny_checkpoint(tmp_path / "dynamic", "llama_dynamic")
    with pytest.raises(ConfigurationError, match="does not support rope_type 'dynamic'"):
        compress_model(str(tmp_path / "dynamic"), tmp_path / "out", config(ratio=0.3))
    tiny_llama(tmp_path / "llama")
    with pytest.raises(ConfigurationError, match="does not support method intraslice "):
        compress_model(
            str(tmp_path / "llama"), tmp_path / "out", config(ratio=0.3, method="intraslice")
        )
    assert not (tmp_path / "out").exists()
