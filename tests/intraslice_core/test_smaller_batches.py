"""Measurements that do not fit a device are repeated with smaller batches, from clean sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.errors import OutOfDeviceMemoryError
from intraslice_core.evaluation.perplexity import PerplexityResult, perplexity
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from tests.intraslice_core.tiny_models import VOCAB_SIZE, tiny_llama, tiny_model

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=16, self_share=0.0)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense")


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "intraslice_plus"},
        {"method": "intraslice", "allocation": "fisher"},
        {"method": "flap"},
        {"method": "2ssp"},
        {"method": "modegpt"},
        {"method": "shortgpt"},
        {"method": "fusegpt"},
    ],
    ids=lambda changes: changes["method"],
)
def test_a_measurement_that_fails_anywhere_equals_one_with_a_smaller_batch(
    dense: Path, tmp_path: Path, changes: dict[str, Any], call: int
) -> None:
    settings = {"ratio": 0.3, "round_to": 2, "calibration": CALIBRATION, "device": "cpu"}
    config = CompressionConfig.model_validate(settings | changes)
    calls: list[ProgressEvent] = []

    def fail_once(event: ProgressEvent) -> None:
        if event.stage is Stage.ALLOCATE:
            calls.append(event)
            if len(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    lowered = compress_model(
        str(dense), tmp_path / "lowered", config, verify=False, on_progress=fail_once
    )
    assert len(calls) > call
    smaller = config.model_copy(update={"batch_size": 4})
    report = compress_model(str(dense), tmp_path / "smaller", smaller, verify=False)
    assert lowered.plan == report.plan
    files = [tmp_path / name / "model.safetensors" for name in ("lowered", "smaller")]
    assert files[0].read_bytes() == files[1].read_bytes()
    warnings = set(lowered.warnings) - set(report.warnings)
    assert {warning.split(":")[0] for warning in warnings} == {
        "compression.batch_size was lowered from 8 to 4"
    }


# -- evaluation -----------------------------------------------------------------------------------


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


def scored(
    model: PreTrainedModel, batch_size: int, length: int = 24
) -> tuple[PerplexityResult, Tensor]:
    """Return the perplexity of random text, and the states that an observer has seen in order."""
    tokens = torch.randint(VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    result = perplexity(
        model,
        tokens,
        context_length=length,
        batch_size=batch_size,
        observer=lambda hidden, _: seen.append(hidden.clone()),
    )
    return result, torch.cat(seen)


def fit_at_most(model: PreTrainedModel, windows: int) -> None:
    """Let the model fail as on a device that holds a number of windows."""

    def check(_module: Any, _arguments: Any, named: dict[str, Tensor]) -> None:
        if len(named["input_ids"]) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    model.base_model.register_forward_pre_hook(check, with_kwargs=True)


def test_an_evaluation_with_smaller_batches_scores_every_position_once(
    model: LlamaForCausalLM,
) -> None:
    expected, states = scored(model, batch_size=8)
    fit_at_most(model, 2)
    result, seen = scored(model, batch_size=8)
    assert result.tokens_scored == expected.tokens_scored
    assert result.mean_nll == pytest.approx(expected.mean_nll, rel=1e-6)
    torch.testing.assert_close(seen, states)


def test_a_window_that_does_not_fit_names_the_context_length(model: LlamaForCausalLM) -> None:
    fit_at_most(model, 0)
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        scored(model, batch_size=8)
    assert caught.value.field == "evaluation.context_length"
