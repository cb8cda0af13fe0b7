"""Behind an output norm, losses do not depend on the length of the module's output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intraslice_core.allocation.estimators import CalibrationSplit, measure_sensitivity
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model


def second_layer(directory: Path, variant: str, factor: float) -> LayerSensitivity:
    """Measure a model whose second layer has output projections `factor` times as large."""
    model = tiny_family_model(variant)
    layer = model.get_decoder().layers[1]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    tokens = torch.randint(3, 90, (10, 16), generator=torch.Generator().manual_seed(0))
    saved = save_checkpoint(model, directory)
    with CheckpointReader(saved) as reader, torch.inference_mode():
        measured = measure_sensitivity(
            DenseLayerReader(reader, torch.device("cpu"), torch.float32),
            CalibrationSplit.of(tokens),
            batch_size=4,
            before_batch=lambda _: None,
            with_trial_cuts=False,
        )
    return measured.layers[1]


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "olmo2", "exaone4", "glm4"])
def test_losses_of_every_kind_ignore_the_scale_of_the_projections(
    tmp_path: Path, variant: str
) -> None:
    plain, longer = (
        second_layer(tmp_path / str(factor), variant, factor) for factor in (30.0, 300.0)
    )
    for name in ("pair_losses", "value_losses", "width_losses", "head_losses"):
        torch.testing.assert_close(
            getattr(longer, name), getattr(plain, name), rtol=1e-3, atol=1e-9, msg=name
        )
