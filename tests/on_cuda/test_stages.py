"""Whole runs work on a device: self-written text, fine-tuning, evaluation, timing and sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.config import CalibrationConfig, CompressionSettings, EvaluationConfig
from intraslice_core.evaluation import continuations, timing
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.sweep import SweepRequest
from intraslice_core.sweep import compress_sweep
from tests.intraslice_core.tiny_models import tiny_llama
from tests.on_cuda.devices import CALIBRATION, compress, observed, settings

RECOVER = {
    "loss": "distill",
    "max_tokens": 512,
    "sequence_length": 32,
    "batch_size": 4,
    "rank": 4,
    "auxiliary": {"hidden": 0.5},
}
EVALUATION = EvaluationConfig(
    perplexity=("pydoc",), max_tokens=128, context_length=32, benchmark=False, prompts=("def",)
)


WAITS: dict[str, int] = {
    "self text": 102,
    "recover and evaluate": 128,
    "verify and time": 133,
    "sweep": 213,
}
"""Waits of each run of two layers."""


@pytest.fixture(autouse=True)
def short_continuations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models continue prompts by a few tokens, whose operations are the same."""
    monkeypatch.setattr(continuations, "NEW_TOKENS", 4)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=2)


def test_text_is_written_on_the_device(dense: Path, tmp_path: Path) -> None:
    calibration = CalibrationConfig(source="self", samples=4, sequence_length=24)
    config = settings(method="flap", calibration=calibration)
    with observed() as observation:
        report, _ = compress(dense, tmp_path / "out", config)
    observation.require_clean(WAITS["self text"])
    assert report.calibration_tokens == 4 * 24


def test_fine_tuning_and_evaluation_run_on_the_device(dense: Path, tmp_path: Path) -> None:
    config = settings(method="flap", recover=RECOVER)
    with observed() as observation:
        report = compress_model(
            str(dense), tmp_path / "device", config, evaluation=EVALUATION, verify=False
        )
    observation.require_clean(WAITS["recover and evaluate"])
    host = compress_model(
        str(dense),
        tmp_path / "host",
        config.model_copy(update={"device": "cpu"}),
        evaluation=EVALUATION,
        verify=False,
    )
    assert report.recovery is not None
    assert host.recovery is not None
    losses, expected = (
        [point.loss for point in run.recovery.losses] for run in (report, host) if run.recovery
    )
    assert losses == pytest.approx(expected, rel=2e-2)
    assert report.evaluation is not None
    assert host.evaluation is not None
    (text,), (other,) = report.evaluation.perplexity, host.evaluation.perplexity
    assert text.dense == pytest.approx(other.dense, rel=1e-2)
    assert text.compressed == pytest.approx(other.compressed, rel=5e-2)


def test_a_result_is_verified_and_timed_on_the_device_where_it_fits(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"new_tokens": 2, "repeats": 1}.items():
        monkeypatch.setitem(timing._BENCHMARK, name, value)
    evaluation = EVALUATION.model_copy(update={"benchmark": True, "prompts": ()})
    messages: list[str] = []
    with observed() as observation:
        report = compress_model(
            str(dense),
            tmp_path / "out",
            settings(method="flap"),
            evaluation=evaluation,
            on_progress=lambda event: messages.append(event.message),
        )
    observation.require_clean(WAITS["verify and time"])
    assert '"device": "cuda:0"' in (tmp_path / "out" / "verification.json").read_text()
    assert not any("the verification takes place on the CPU" in message for message in messages)
    assert report.evaluation is not None
    assert report.evaluation.speed is not None
    assert report.verified
    assert report.peak_memory_bytes <= observation.peak


def test_every_ratio_of_a_sweep_reports_its_own_peak(dense: Path, tmp_path: Path) -> None:
    request = SweepRequest(
        model=str(dense),
        settings=CompressionSettings(
            method="intraslice",
            allocation="uniform",
            calibration=CALIBRATION,
            round_to=2,
            device="cuda",
        ),
        ratios=(0.2, 0.5),
        evaluation=EVALUATION,
        verify=False,
    )
    with observed() as observation:
        report = compress_sweep(request, tmp_path / "out")
    observation.require_clean(WAITS["sweep"])
    first, second = (point.peak_memory_bytes for point in report.points)
    assert first is not None
    assert second is not None
    assert 0 < second <= first <= observation.peak
