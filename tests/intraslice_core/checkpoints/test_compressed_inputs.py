"""Results of earlier compressions are read, estimated and compressed like any other model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CalibrationConfig, CompressionConfig, Method, Target
from intraslice_core.cost_model import estimate, read_dense
from intraslice_core.errors import BrokenCheckpointError, ConfigurationError
from intraslice_core.plan import dense_parameters
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.checkpoints.dense_logits import (
    change_settings,
    engine_logits,
    require_equal_logits,
    tokens,
)
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.modeling import dense_families
from tests.intraslice_core.modeling.cutting import cut_model, cuts_without_modules
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_tokenizer

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)


def config(
    ratio: float, target: Target = "research", method: Method = "intraslice_plus"
) -> CompressionConfig:
    return CompressionConfig(
        ratio=ratio, target=target, method=method, round_to=1, calibration=CALIBRATION
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with one result of every target that is named after it."""
    place = tmp_path_factory.mktemp("results")
    dense = tiny_llama(place / "dense")
    for target in ("research", "adaptive", "stock"):
        compress_unverified(dense, place / target, config(0.3, target))
    return place


def sizes(directory: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("modules", ["cut", "removed"])
@pytest.mark.parametrize("name", dense_families.FAMILIES)
def test_result_of_every_family_is_read_as_transformers_loads_it(
    tmp_path: Path, name: str, modules: str
) -> None:
    family = dense_families.FAMILIES[name]()
    layers = None if modules == "cut" else cuts_without_modules(family.head_dim)
    model = cut_model(family, layers)
    model.save_pretrained(tmp_path)
    ids = dense_families.tokens()
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(engine_logits(tmp_path, ids), expected, rtol=0, atol=1e-4)
    with CheckpointReader(tmp_path) as reader:
        geometry = reader.family.geometry(reader.config)
        assert reader.warnings == ()
    assert dense_parameters(geometry) == sum(p.numel() for p in model.parameters())
    assert read_dense(tmp_path).geometry == geometry


@pytest.mark.parametrize("target", ["adaptive", "stock"])
def test_result_of_the_other_targets_is_read_as_transformers_loads_it(
    results: Path, target: str
) -> None:
    require_equal_logits(results / target)


def recompressed(
    results: Path, out: Path, source: str, settings: CompressionConfig
) -> CompressionReport:
    """Compress a result again and check sizes and the written model."""
    report = compress_unverified(results / source, out, settings)
    assert report.params_before == sizes(results / source)
    assert report.params_after == sizes(out)
    require_equal_logits(out)
    return report


@pytest.mark.parametrize(
    ("source", "target", "method"),
    [
        ("research", "research", "intraslice_plus"),
        ("research", "research", "intraslice"),
        ("research", "research", "magnitude"),
        ("adaptive", "adaptive", "intraslice_plus"),
        ("adaptive", "research", "intraslice_plus"),
        ("stock", "stock", "intraslice_plus"),
    ],
)
def test_ratio_of_a_second_compression_counts_from_its_input(
    results: Path, tmp_path: Path, source: str, target: Target, method: Method
) -> None:
    settings = config(0.2, target, method)
    report = recompressed(results, tmp_path / "out", source, settings)
    removed = 1 - report.compressible_after / report.compressible_before
    assert removed == pytest.approx(0.2, abs=0.02)
    dense = read_dense(results / source)
    assert dense.geometry is not None
    estimated = estimate(dense.geometry, dense.item_bytes, settings, None)
    assert estimated.params_before == report.params_before
    assert estimated.compressible_after == pytest.approx(report.compressible_after, rel=0.03)


@pytest.mark.parametrize("source", ["research", "adaptive"])
def test_nothing_removed_from_a_result_leaves_the_function(
    results: Path, tmp_path: Path, source: str
) -> None:
    report = recompressed(results, tmp_path / "out", source, config(0.0))
    assert report.params_after == report.params_before
    ids = tokens()
    torch.testing.assert_close(
        engine_logits(tmp_path / "out", ids),
        engine_logits(results / source, ids),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("method", ["intraslice_plus", "intraslice", "magnitude"])
@pytest.mark.parametrize("modules", ["cut", "removed"])
def test_removed_heads_and_modules_stay_removed(
    tmp_path: Path, method: Method, modules: str
) -> None:
    family = dense_families.FAMILIES["qwen3"]()
    family.config.vocab_size = len(tiny_tokenizer())
    layers = None if modules == "cut" else cuts_without_modules(family.head_dim)
    save_checkpoint(cut_model(family, layers), tmp_path / "input")
    report = recompressed(tmp_path, tmp_path / "out", "input", config(0.1, method=method))
    for before, after in zip(report.geometry.input_layers, report.plan.layers, strict=True):
        assert after.num_attention_heads <= before.num_attention_heads
        assert after.num_key_value_heads <= before.num_key_value_heads
        assert after.qk_pairs <= before.qk_pairs
        assert after.v_head_dim <= before.v_head_dim
        assert after.intermediate_size <= before.intermediate_size


@pytest.mark.parametrize(("source", "target"), [("research", "adaptive"), ("adaptive", "stock")])
def test_target_that_cannot_hold_the_shapes_is_rejected_first(
    results: Path, tmp_path: Path, source: str, target: Target
) -> None:
    with pytest.raises(ConfigurationError, match=f"target {target} does not support"):
        compress_unverified(results / source, tmp_path / "out", config(0.2, target))


def test_contradicting_number_of_layers_is_rejected(results: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for file in (results / "adaptive").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    blocks = json.loads((directory / "config.json").read_text())["block_configs"]
    change_settings(directory, block_configs=blocks[1:])
    with pytest.raises(BrokenCheckpointError, match="block_configs has 2 entries for 3 layers"):
        CheckpointReader(directory)
