"""Target of the refits: the dense hidden states, behind output norms the module's own output."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.methods import METHODS, method_for
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.tiny_models import tiny_checkpoint

CONFIG = CompressionConfig(
    ratio=0.3,
    round_to=2,
    dtype="float32",
    allocation="uniform",
    calibration=CalibrationConfig(source="pydoc", samples=4, sequence_length=32, self_share=0.0),
)


def test_output_norms_change_the_target_and_nothing_else():
    plain = method_for("intraslice_plus", output_norms=False)
    normed = method_for("intraslice_plus", output_norms=True)

    assert plain == METHODS["intraslice_plus"]
    assert {name for name in vars(plain) if vars(plain)[name] != vars(normed)[name]} == {
        "dense_target"
    }


@pytest.mark.parametrize("method", ["intraslice", "magnitude"])
def test_methods_without_dense_target_are_the_same_behind_output_norms(method):
    assert method_for(method, output_norms=True) == METHODS[method]


@pytest.mark.parametrize(
    ("variant", "corrects"), [("llama", True), ("gemma3", False), ("olmo2", False)]
)
def test_only_models_without_output_norms_are_corrected_towards_the_dense_model(
    tmp_path: Path, variant: str, corrects: bool
):
    report = compress_model(
        str(tiny_checkpoint(tmp_path / "dense", variant)), tmp_path / "out", CONFIG, verify=False
    )

    modules = [module for layer in report.layers for module in (layer.attention, layer.mlp)]
    assert [("correction" in module.damping) for module in modules] == [corrects] * len(modules)
