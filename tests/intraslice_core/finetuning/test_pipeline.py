"""Compression with recovery fine-tuning in one run: verified, reported and resumed when killed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from intraslice_core import errors
from intraslice_core.config import CalibrationConfig, CompressionConfig, EvaluationConfig
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage, shares_of
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.finetuning.training_runs import SETTINGS, compression, files_of
from tests.intraslice_core.tiny_models import tiny_llama

TIMED = {"verification.json", REPORT_FILE, "README.md", "manifest.json"}
"""Files that contain times, or hashes of files that do."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense")


def config(**changes: Any) -> CompressionConfig:
    recover = {name: changes.pop(name) for name in list(changes) if name in ("loss", "source")}
    return compression(recover=SETTINGS | {"loss": "ce"} | recover, **changes)


def weights_of(checkpoint: Path) -> dict[str, str]:
    return {name: digest for name, digest in files_of(checkpoint).items() if name not in TIMED}


@pytest.mark.parametrize(("target", "loss"), [("research", "ce"), ("stock", "distill")])
def test_a_fine_tuned_checkpoint_is_verified_and_loads_without_intraslice(
    dense: Path, tmp_path: Path, target: str, loss: str
) -> None:
    evaluation = EvaluationConfig(max_tokens=512, context_length=32, benchmark=False)
    report = compress_model(
        str(dense), tmp_path / "out", config(target=target, loss=loss), evaluation=evaluation
    )
    plain = compress_model(
        str(dense),
        tmp_path / "plain",
        compression(target=target),
        evaluation=evaluation,
        verify=False,
    )
    assert report.recovery is not None
    assert report.evaluation is not None
    assert plain.evaluation is not None
    assert (report.params_after, report.bytes_after) == (plain.params_after, plain.bytes_after)
    assert report.plan == plain.plan
    if loss == "ce":
        recovered = report.evaluation.perplexity[0].compressed
        assert recovered < 0.5 * plain.evaluation.perplexity[0].compressed
    stored = CompressionReport.model_validate_json((tmp_path / "out" / REPORT_FILE).read_text())
    assert stored == report
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"perplexity {report.recovery.held_out.before:.2f} → " in card
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=target == "research", dtype=torch.float32
    )
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]


class KilledError(Exception):
    """A substitute for SIGKILL: nothing is cleaned up before the next run."""


def test_a_run_killed_during_training_resumes_on_another_machine(
    dense: Path, tmp_path: Path
) -> None:
    compress_model(str(dense), tmp_path / "whole", config(), verify=False)

    def killed(event: ProgressEvent) -> None:
        if event.stage is Stage.RECOVER and event.message.startswith("step 20/"):
            raise KilledError

    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    state = ResumeState(
        directory=here,
        hidden_states_every_seconds=0.0,
        # The service copies every reported file.
        on_saved=lambda name: (elsewhere / name).write_bytes((here / name).read_bytes()),
    )
    with pytest.raises(KilledError):
        compress_model(
            str(dense), tmp_path / "out", config(), resume_state=state, on_progress=killed
        )
    steps: list[str] = []

    def listen(event: ProgressEvent) -> None:
        if event.stage is Stage.RECOVER and event.message.startswith("step "):
            steps.append(event.message.partition(",")[0])

    state = ResumeState(directory=elsewhere, hidden_states_every_seconds=0.0)
    report = compress_model(
        str(dense), tmp_path / "out", config(), resume_state=state, on_progress=listen, verify=False
    )
    assert report.resumed_layers == 3
    assert list(dict.fromkeys(steps)) == [f"step {step}/40" for step in range(20, 41)]
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


def test_finished_layers_are_reused_with_other_training_settings(
    dense: Path, tmp_path: Path
) -> None:
    for name, settings in (("plain", compression()), ("trained", config())):
        state = ResumeState(directory=tmp_path / "state")
        report = compress_model(
            str(dense), tmp_path / name, settings, resume_state=state, verify=False
        )
    assert report.resumed_layers == 3
    assert weights_of(tmp_path / "plain") != weights_of(tmp_path / "trained")


def test_repeatedly_written_files_are_not_reported(dense: Path, tmp_path: Path) -> None:
    reported: list[str] = []
    state = ResumeState(
        directory=tmp_path / "state", hidden_states_every_seconds=0.0, on_saved=reported.append
    )
    compress_model(str(dense), tmp_path / "out", config(), resume_state=state, verify=False)
    saved = {file.name for file in (tmp_path / "state").iterdir()}
    assert saved - set(reported) == {"hidden-states.safetensors"}
    assert "recovery-tokens.safetensors" in reported
    states = [name for name in reported if name.startswith("training-")]
    assert len(states) == 40
    assert sorted(name for name in saved if name in states) == sorted(states)[-2:]
    assert len(reported) == len(set(reported))


def test_progress_never_falls_and_training_estimates_its_remaining_time(
    dense: Path, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    compress_model(str(dense), tmp_path / "out", config(), on_progress=events.append, verify=False)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    steps = (event for event in events if ": " not in event.message)  # without sub-steps
    training = [event for event in steps if event.stage is Stage.RECOVER]
    assert len({event.message for event in training}) == 41  # a slow step repeats its event
    assert all(event.eta_seconds is not None and event.eta_seconds > 0.0 for event in training[2:])


@pytest.mark.parametrize("recover", [False, True])
def test_shares_of_the_stages_have_no_gaps(recover: bool) -> None:
    shares = shares_of(recover=recover)
    begin, end = shares[Stage.RECOVER]
    assert (end > begin) == recover
    order = [stage for stage in Stage if stage in shares]
    places = [place for stage in order for place in shares[stage]]
    assert places[0] == 0.0
    assert places[-1] == pytest.approx(1.0)
    for (_, end), (begin, _) in zip(
        [shares[stage] for stage in order], [shares[stage] for stage in order[1:]], strict=False
    ):
        assert math.isclose(end, begin)
    unused = {Stage.TOURNAMENT, Stage.PUBLISH} | (set() if recover else {Stage.RECOVER})
    assert {stage for stage, (low, high) in shares.items() if low == high} == unused


def test_a_run_cancelled_during_training_leaves_no_files(dense: Path, tmp_path: Path) -> None:
    reached: list[str] = []

    def listen(event: ProgressEvent) -> None:
        if event.stage is Stage.RECOVER:
            reached.append(event.message)

    with pytest.raises(errors.CompressionCancelledError):
        compress_model(
            str(dense),
            tmp_path / "out",
            config(),
            on_progress=listen,
            should_cancel=lambda: len(reached) > 3,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected", "field"),
    [
        ("too short", errors.CalibrationTooShortError, "compression.recover.max_tokens"),
        (None, errors.CalibrationSourceError, "compression.recover.source"),
    ],
)
def test_unusable_training_text_is_rejected_before_compression(
    dense: Path,
    tmp_path: Path,
    text: str | None,
    expected: type[errors.IntraSliceError],
    field: str,
) -> None:
    file = tmp_path / "text.txt"
    if text is not None:
        file.write_text(text)
    stages: list[Stage] = []
    with pytest.raises(expected) as rejected:
        compress_model(
            str(dense),
            tmp_path / "out",
            config(source=str(file)),
            on_progress=lambda event: stages.append(event.stage),
        )
    assert rejected.value.field == field
    assert set(stages) <= {Stage.LOAD, Stage.CALIBRATE}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "mse"},
        {"max_tokens": 100},
        {"max_tokens": 10**11, "sequence_length": 16},
        {"adapter": "ia3"},
        {"schedule": "step"},
        {"warm_up": 1.0},
        {"gradient_accumulation": 0},
        {"auxiliary": {"hidden": -1.0}},
        {"auxiliary": {"mse": 1.0}},
        {"loss": "ce", "auxiliary": {"ce": 0.5}},
        {"max_seconds": 0.0},
        {"learning_rate": -1.0},
        {"rank": 0},
        {"steps": 5},
        {"source": [{"source": "pydoc"}, {"source": "pydoc"}]},
        {"source": [{"source": "pydoc", "weight": 1e6}, {"source": "pycode", "weight": 1e-3}]},
    ],
)
def test_settings_out_of_range_are_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="recover"):
        CompressionConfig.model_validate({"recover": changes})


def test_training_uses_the_calibration_text_unless_it_has_its_own() -> None:
    calibration = CalibrationConfig(source="pycode")
    own = CompressionConfig.model_validate(
        {"calibration": calibration, "recover": {"source": "pydoc"}}
    )
    none = CompressionConfig.model_validate({"calibration": calibration, "recover": {}})
    assert own.seen_sources == ("pycode", "self", "pydoc")
    assert none.seen_sources == ("pycode", "self")
    assert none.recover is not None
    assert none.recover.text(calibration).seed != calibration.seed
