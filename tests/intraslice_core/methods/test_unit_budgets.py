"""Budgets, sharing and reports of the published methods of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intraslice_core.config import CompressionConfig, Method
from intraslice_core.cost_model import estimate, read_dense
from intraslice_core.pipeline import compress_model
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.methods.masked_models import CALIBRATION
from tests.intraslice_core.tiny_models import tiny_llama

METHODS: tuple[Method, ...] = ("flap", "wanda_sp", "2ssp", "transact")
LAYER_METHODS: tuple[Method, ...] = ("shortgpt", "fusegpt")
DIMENSION_METHODS: tuple[Method, ...] = ("modegpt", "spp")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("dense"), intermediate_size=256)


@pytest.mark.parametrize("target", ["research", "adaptive"])
@pytest.mark.parametrize("method", [*METHODS, *DIMENSION_METHODS, *LAYER_METHODS])
@pytest.mark.parametrize("budget", ["ratio", "target_params", "target_bytes"])
def test_every_budget_is_met_within_a_rounding_step(
    dense: Path, tmp_path: Path, method: Method, target: str, budget: str
) -> None:
    before = read_dense(dense)
    assert before.geometry is not None
    size = {"ratio": 0.25, "target_params": 110_000, "target_bytes": 440_000}[budget]
    config = CompressionConfig.model_validate(
        {"method": method, "target": target, budget: size, "calibration": CALIBRATION}
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    step = 3 * 48 * (report.config.round_to or 1)
    if method == "spp":  # the order's last step may be one of attention
        step *= 2
    if budget == "ratio":
        goal = 0.75 * report.compressible_before
        assert abs(report.compressible_after - goal) <= step * (1 if target == "research" else 3)
    elif budget == "target_params":
        assert report.params_after <= size + step
        assert report.params_after >= size - step * 3
    else:
        assert report.bytes_after <= size + 4 * step
        assert report.bytes_after >= 0.97 * size
    estimated = estimate(before.geometry, before.item_bytes, config, None, "llama")
    assert estimated.params_after == pytest.approx(report.params_after, rel=0.01)
    assert estimated.params_before == report.params_before


@pytest.mark.parametrize("method", ["flap", "2ssp", "modegpt", "shortgpt", "spp"])
def test_a_second_ratio_uses_the_cached_activations(
    dense: Path, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)

    def run(ratio: float, name: str, cache: StatisticsCache | None) -> dict[str, bytes]:
        config = CompressionConfig(method=method, ratio=ratio, calibration=CALIBRATION)
        out = tmp_path / name
        compress_model(str(dense), out, config, statistics_cache=cache, verify=False)
        return {file.name: file.read_bytes() for file in out.glob("*.safetensors")}

    alone = run(0.4, "alone", None)
    run(0.2, "first", place)
    allocation = "intraslice_core.allocation"
    monkeypatch.setattr(f"{allocation}.unit_shapes.measure_activations", None)
    monkeypatch.setattr(f"{allocation}.influence_shapes.measure_block_influence", None)
    monkeypatch.setattr(f"{allocation}.shapes.measure_sensitivity", None)
    assert run(0.4, "second", place) == alone


@pytest.mark.parametrize("budget", ["ratio", "target_params", "target_bytes"])
def test_every_budget_of_reads_and_writes_is_met(dense: Path, tmp_path: Path, budget: str) -> None:
    size = {"ratio": 0.25, "target_params": 110_000, "target_bytes": 440_000}[budget]
    config = CompressionConfig.model_validate(
        {"method": "disp", budget: size, "calibration": CALIBRATION}
    )
    report = compress_unverified(dense, tmp_path / "out", config)
    if budget == "ratio":
        assert report.removed_fraction == pytest.approx(0.25, abs=0.005)
    elif budget == "target_params":
        assert report.params_after == pytest.approx(size, rel=0.005)
    else:
        assert 0.97 * size <= report.bytes_after <= 1.005 * size
    before = read_dense(dense)
    assert before.geometry is not None
    estimated = estimate(before.geometry, before.item_bytes, config, None, "llama")
    assert estimated.params_after == report.params_after


@pytest.mark.parametrize("method", METHODS)
def test_the_report_shows_the_scores_and_no_refit(
    dense: Path, tmp_path: Path, method: Method
) -> None:
    config = CompressionConfig(method=method, ratio=0.3, calibration=CALIBRATION)
    report = compress_unverified(dense, tmp_path / "out", config)
    assert report.method == method
    for layer in report.layers:
        assert layer.attention.relative_error is None
        assert layer.mlp.damping == {}
        for spectrum in layer.mlp.spectra:
            assert (spectrum.dimension, spectrum.measure) == ("MLP neurons", "score")
            assert spectrum.kept == layer.plan.intermediate_size
    assert any(layer.mlp.spectra for layer in report.layers)


@pytest.mark.parametrize(
    "method", [*METHODS, *DIMENSION_METHODS, *LAYER_METHODS, "slicegpt", "disp"]
)
def test_nothing_removed_leaves_the_weights(dense: Path, tmp_path: Path, method: Method) -> None:
    settings: dict[str, Any] = {"ratio": 0.0, "calibration": CALIBRATION}
    for name in (method, "magnitude"):
        config = CompressionConfig(method=name, **settings)
        compress_unverified(dense, tmp_path / name, config)
    files = [tmp_path / name / "model.safetensors" for name in (method, "magnitude")]
    assert files[0].read_bytes() == files[1].read_bytes()
