"""Choice of the allocator, cached sensitivity, and the fallback to uniform shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intraslice_core.allocation import cached_sensitivity, search, shapes
from intraslice_core.allocation.judge import HeldOutDivergence
from intraslice_core.allocation.search import TrialCompression
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import ModelPlan
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.sensitivity.trial_cuts import TrialCuts
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)


def compress(tmp_path: Path, **changes) -> CompressionReport:
    dense = tiny_llama(tmp_path / "dense") if not (tmp_path / "dense").exists() else None
    settings = {"ratio": 0.3, "round_to": 2, "calibration": CALIBRATION, **changes}
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    return compress_unverified(
        dense or tmp_path / "dense", out, CompressionConfig.model_validate(settings)
    )


@pytest.mark.parametrize(
    ("method", "allocation", "allocator"),
    [
        ("intraslice", "auto", "fisher_pca"),
        ("intraslice", "fisher", "fisher"),
        ("intraslice", "uniform", "uniform"),
        ("magnitude", "auto", "uniform"),
        ("intraslice_plus", "fisher", "fisher"),
    ],
)
def test_the_requested_allocator_chooses_the_shapes(method, allocation, allocator, tmp_path):
    report = compress(tmp_path, method=method, allocation=allocation)
    assert report.allocation is not None
    assert report.allocation.allocator == allocator
    assert report.allocation.requested == allocation
    assert report.removed_fraction == pytest.approx(0.3, abs=0.0035)


def test_the_lagrangian_reports_its_measurements(tmp_path):
    report = compress(tmp_path, allocation="lagrangian")
    section = report.allocation
    assert section is not None
    assert section.calibration_loss is not None
    losses = [candidate.calibration_loss for candidate in section.candidates]
    assert losses[1:] == sorted(losses[1:])
    assert losses[0] == section.calibration_loss
    errors = [candidate.standard_error for candidate in section.candidates]
    assert errors[0] == 0.0
    assert all(error > 0.0 for error in errors[1:])
    assert section.uniform_calibration_loss is not None
    if section.fell_back:
        assert section.calibration_loss > section.uniform_calibration_loss
    assert section.allocator == ("uniform" if section.fell_back else "lagrangian")
    assert section.predicted_loss > 0
    assert len(section.layers) == 3
    assert {trial.layer for trial in section.trials} == {0, 2}


@pytest.mark.parametrize(
    ("equal", "noise", "fell_back"), [(-1.0, 0.0, True), (1.0, 0.0, False), (-0.01, 1.0, False)]
)
def test_equal_shapes_are_used_only_if_they_are_better_beyond_the_standard_error(
    equal, noise, fell_back, tmp_path, monkeypatch
):
    generator = torch.Generator().manual_seed(0)

    def divergences(
        trial: TrialCompression, plans: Sequence[ModelPlan], _: object
    ) -> list[HeldOutDivergence]:
        tokens = torch.full((len(plans), len(trial.check), 512), 2.0)
        tokens[-1] += equal + noise * torch.randn(tokens.shape[1:], generator=generator)
        return [HeldOutDivergence(tokens=own, kinds=trial.kinds) for own in tokens]

    monkeypatch.setattr(TrialCompression, "divergences", divergences)
    report = compress(tmp_path, allocation="lagrangian")
    assert report.allocation is not None
    assert report.allocation.fell_back is fell_back
    if fell_back:
        assert "equal MLP widths with whole attention" in str(report.allocation.fallback_reason)
        dense = report.geometry.dense_layer()
        assert {layer.qk_pairs for layer in report.plan.layers} == {dense.qk_pairs}
        widths = [layer.intermediate_size for layer in report.plan.layers]
        assert max(widths) - min(widths) <= 2


def test_a_second_ratio_uses_the_cached_sensitivity(tmp_path, monkeypatch):
    dense = tiny_llama(tmp_path / "dense")
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)

    def run(ratio: float, name: str, statistics_cache: StatisticsCache | None) -> dict[str, bytes]:
        config = CompressionConfig(ratio=ratio, round_to=2, calibration=CALIBRATION)
        compress_model(
            str(dense), tmp_path / name, config, statistics_cache=statistics_cache, verify=False
        )
        return {file.name: file.read_bytes() for file in (tmp_path / name).glob("*.safetensors")}

    alone = run(0.4, "alone", None)
    run(0.2, "first", place)
    monkeypatch.setattr("intraslice_core.allocation.shapes.measure_sensitivity", None)
    assert run(0.4, "second", place) == alone


def test_trial_cuts_are_measured_for_the_lagrangian_only(tmp_path, monkeypatch):
    """A cached measurement without trial cuts serves `uniform` only, one with them serves both."""
    dense = tiny_llama(tmp_path / "dense")
    counts: Counter[str] = Counter()
    measure, advance = shapes.measure_sensitivity, TrialCuts.pass_layer

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(shapes, "measure_sensitivity", counted("measured", measure))
    monkeypatch.setattr(TrialCuts, "pass_layer", counted("trial layers", advance))

    def run(allocation: str, cache: str) -> tuple[CompressionReport, dict[str, int], bytes]:
        config = CompressionConfig.model_validate(
            {"ratio": 0.3, "round_to": 2, "calibration": CALIBRATION, "allocation": allocation}
        )
        place = StatisticsCache(directory=tmp_path / cache, max_bytes=2**30)
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        counts.clear()
        report = compress_model(str(dense), out, config, statistics_cache=place, verify=False)
        weights = (out / "model.safetensors").read_bytes()
        return report, dict(counts), weights

    _, first, without = run("uniform", "a")
    assert first == {"measured": 1}
    report, second, _ = run("lagrangian", "a")
    assert second == {"measured": 1, "trial layers": 3}
    assert {trial.layer for trial in report.allocation.trials} == {0, 2}
    assert run("lagrangian", "b")[1] == second
    _, third, with_them = run("uniform", "b")
    assert third == {}
    assert with_them == without


def test_a_sensitivity_of_another_measurement_is_measured_again(tmp_path, monkeypatch):
    dense = tiny_llama(tmp_path / "dense")
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)
    config = CompressionConfig(ratio=0.3, round_to=2, calibration=CALIBRATION)

    def run(name: str) -> set[str]:
        compress_model(str(dense), tmp_path / name, config, statistics_cache=place, verify=False)
        return {file.name for file in place.directory.glob("sensitivity-*")}

    first = run("first")
    assert run("again") == first
    monkeypatch.setattr(cached_sensitivity, "MEASUREMENT", "an earlier version")
    assert len(run("later") - first) == 1


def test_plans_are_judged_on_every_kind_of_calibration_text(tmp_path, monkeypatch):
    judged: list[Tensor] = []
    divergences = TrialCompression.divergences

    def recording(trial: TrialCompression, *arguments: Any) -> Sequence[HeldOutDivergence]:
        judged.append(trial.kinds)
        return divergences(trial, *arguments)

    monkeypatch.setattr(TrialCompression, "divergences", recording)
    half = CALIBRATION.model_copy(update={"self_share": 0.5})
    compress(tmp_path, allocation="lagrangian", calibration=half)
    assert judged
    assert all(sorted(kinds.tolist()) == [0, 1] for kinds in judged)


def test_fast_shapes_are_reported_with_their_predicted_loss(tmp_path, monkeypatch):
    # One candidate: predicted losses of different candidates are not comparable.
    monkeypatch.setattr(search, "CANDIDATES", search.CANDIDATES[:1])
    tiny_llama(tmp_path / "dense", intermediate_size=512)
    fast, plain = (
        compress(tmp_path, allocation="lagrangian", prefer_fast_shapes=preferred)
        for preferred in (True, False)
    )
    section = fast.allocation.fast_shapes
    assert section.multiple in {8, 16}
    loss = fast.allocation.predicted_loss - plain.allocation.predicted_loss
    assert section.extra_loss == pytest.approx(loss, abs=1e-6)
    assert fast.removed_fraction == pytest.approx(0.3, abs=0.0035)
    widths = [layer.intermediate_size for layer in fast.plan.layers]
    assert all(width % section.multiple == 0 for width in widths)
    assert any(layer.intermediate_size % 8 for layer in plain.plan.layers)
    assert plain.allocation.fast_shapes is None
