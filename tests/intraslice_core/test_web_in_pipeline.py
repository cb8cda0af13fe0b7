"""Web text in the default mixture: used where the Hub answers, else left out with a warning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from intraslice_core.config import (
    DEFAULT_MIXTURE,
    OFFLINE_MIXTURE,
    CompressionConfig,
    TrainingTextConfig,
)
from intraslice_core.errors import WebTextError
from intraslice_core.finetuning.training_text import training_text_or_offline
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.sweep import SweepRequest
from intraslice_core.resume_state import ResumeState
from intraslice_core.statistics_cache import StatisticsCache
from intraslice_core.sweep import compress_sweep
from tests.intraslice_core.calibration.web_hub import WebHub, web_hub
from tests.intraslice_core.tiny_models import tiny_llama

REFUSED = "the calibration is without web text: web text (allenai/c4) cannot be read: "


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=1)


@pytest.fixture(scope="module")
def server() -> Iterator[WebHub]:
    with web_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: WebHub) -> Iterator[WebHub]:
    server.requests.clear()
    yield server
    server.status = 302


def settings(**calibration: Any) -> dict[str, Any]:
    return {
        "round_to": 1,
        "method": "magnitude",
        "device": "cpu",
        "calibration": {"samples": 10, "sequence_length": 32, **calibration},
    }


def compress(
    dense: Path, out: Path, config: dict[str, Any] | None = None, **run: Any
) -> CompressionReport:
    config = {"ratio": 0.2, **(config or settings())}
    return compress_model(
        str(dense), out, CompressionConfig.model_validate(config), verify=False, **run
    )


def of_web(report: CompressionReport) -> list[str]:
    return [warning for warning in report.warnings if "web text" in warning]


def test_report_names_the_mixture_that_was_used(hub: WebHub, dense: Path, tmp_path: Path) -> None:
    online = compress(dense, tmp_path / "online")
    assert online.config.calibration.source == DEFAULT_MIXTURE
    assert of_web(online) == []
    hub.status = 403
    offline = compress(dense, tmp_path / "offline")
    assert offline.config.calibration.source == OFFLINE_MIXTURE
    assert [warning.startswith(REFUSED) for warning in of_web(offline)] == [True]
    today = compress(
        dense,
        tmp_path / "today",
        settings(source=[part.model_dump() for part in OFFLINE_MIXTURE]),
    )
    assert offline.calibration_hash == today.calibration_hash != online.calibration_hash
    written = json.loads((tmp_path / "offline" / "intraslice_report.json").read_text())
    assert CompressionReport.model_validate(written) == offline
    assert len(hub.requests) == 2


@pytest.mark.parametrize(("first", "later"), [(302, 403), (403, 302)])
def test_a_resumed_run_keeps_the_mixture_that_it_began_with(
    hub: WebHub, dense: Path, tmp_path: Path, first: int, later: int
) -> None:
    state = ResumeState(directory=tmp_path / "state")
    reports = []
    for status in (first, later):
        hub.status = status
        reports.append(compress(dense, tmp_path / f"out-{status}", resume_state=state))
    assert reports[0].calibration_hash == reports[1].calibration_hash
    assert reports[0].config == reports[1].config
    assert of_web(reports[0]) == of_web(reports[1])
    assert len(hub.requests) == 1


@pytest.mark.parametrize(("first", "later"), [(302, 403), (403, 302)])
def test_runs_with_a_common_cache_have_one_mixture(
    hub: WebHub, dense: Path, tmp_path: Path, first: int, later: int
) -> None:
    reports = []
    for status in (first, later):
        hub.status = status
        cache = StatisticsCache(directory=tmp_path / "cache", max_bytes=2**20)
        reports.append(compress(dense, tmp_path / f"out-{status}", statistics_cache=cache))
    assert reports[0].config.calibration == reports[1].config.calibration
    assert of_web(reports[0]) == of_web(reports[1])


def test_a_finished_sweep_without_web_text_is_recognised(
    hub: WebHub, dense: Path, tmp_path: Path
) -> None:
    request = SweepRequest.model_validate(
        {
            "model": str(dense),
            "settings": settings(),
            "ratios": [0.2],
            "evaluation": None,
            "verify": False,
        }
    )
    hub.status = 403
    first = compress_sweep(request, tmp_path)
    assert compress_sweep(request, tmp_path).points == first.points


@pytest.mark.parametrize("source", ["web", [{"source": "pydoc"}, {"source": "web"}]])
def test_web_text_that_was_named_must_be_readable(
    hub: WebHub, dense: Path, tmp_path: Path, source: Any
) -> None:
    report = compress(dense, tmp_path / "out", settings(source=source))
    assert "web" in report.config.seen_sources
    hub.status = 403
    with pytest.raises(WebTextError, match="403"):
        compress(dense, tmp_path / "again", settings(source=source))


def test_fine_tuning_goes_without_web_text_too(hub: WebHub, dense: Path, tmp_path: Path) -> None:
    recover = {"loss": "ce", "max_tokens": 320, "sequence_length": 32, "batch_size": 2, "rank": 2}
    hub.status = 403
    within = compress(dense, tmp_path / "within", {**settings(), "recover": recover})
    assert "web" not in within.config.seen_sources


@pytest.mark.parametrize("source", [None, [part.model_dump() for part in DEFAULT_MIXTURE]])
def test_fine_tuning_after_a_calibration_on_web_text_can_go_without_it(source: Any) -> None:
    config = CompressionConfig.model_validate(
        {"calibration": {"text_field": "body"}, "recover": {"source": source, "text_field": "body"}}
    )
    warnings: list[str | None] = []

    def read(text: TrainingTextConfig, warning: str | None) -> torch.Tensor:
        warnings.append(warning)
        if "web" in [part.source for part in text.sources]:
            raise WebTextError("out of reach")
        assert text.text_field == "body"
        return torch.zeros(1)

    used, _ = training_text_or_offline(config, read)
    assert used.calibration.source == DEFAULT_MIXTURE
    assert used.recover is not None
    assert used.recover.source == OFFLINE_MIXTURE
    assert warnings == [None, "the fine-tuning is without web text: out of reach"]


def test_fine_tuning_on_named_web_text_needs_it() -> None:
    def read(text: TrainingTextConfig, warning: str | None) -> torch.Tensor:
        raise WebTextError("out of reach")

    config = CompressionConfig.model_validate({"recover": {"source": "web"}})
    with pytest.raises(WebTextError) as caught:
        training_text_or_offline(config, read)
    assert caught.value.field == "compression.recover.source"


def test_few_sequences_need_no_web_text(
    hub: WebHub, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    report = compress(dense, tmp_path / "out", settings(samples=4))
    assert of_web(report) == []
    assert hub.requests == []
