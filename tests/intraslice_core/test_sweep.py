"""A sweep gives the checkpoints of single compressions with less work, and resumes.

So does a comparison of methods, which is a sweep with several methods.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from intraslice_core import pipeline, publication, run_texts, sweep
from intraslice_core.allocation import estimators, unit_shapes
from intraslice_core.checkpoints import sources
from intraslice_core.config import (
    CalibrationConfig,
    CompressionSettings,
    EvaluationConfig,
    GateConfig,
    Method,
)
from intraslice_core.errors import (
    BudgetOutOfReachError,
    CompressionCancelledError,
    ConfigurationError,
    OutputExistsError,
    OutputInUseError,
)
from intraslice_core.evaluation import scoring
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.schema import REPORT_FILE
from intraslice_core.reports.sweep import SweepChild, SweepReport, SweepRequest, check_sizes
from intraslice_core.scratch import held_directory
from intraslice_core.sensitivity import measurement
from intraslice_core.sweep import compress_sweep
from tests.intraslice_core.tiny_models import tiny_llama

RATIOS = (0.2, 0.4)
SETTINGS = CompressionSettings(
    calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
    round_to=2,
    dtype="float32",
    device="cpu",
)
EVALUATION = EvaluationConfig(
    perplexity=("pydoc", "self"), max_tokens=128, context_length=32, benchmark=False
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sweeps") / "dense")


def test_second_sweep_into_the_same_output_is_rejected(dense: Path, tmp_path: Path) -> None:
    with (
        held_directory(tmp_path / "out" / sweep.WORK_FOLDER, tmp_path / "out"),
        pytest.raises(OutputInUseError, match="is writing to"),
    ):
        compress_sweep(request(dense), tmp_path / "out")
    assert not list(tmp_path.glob("out/ratio-*"))


def request(
    dense: Path, evaluation: EvaluationConfig | None = None, *, verify: bool = True
) -> SweepRequest:
    return SweepRequest(
        model=str(dense), settings=SETTINGS, ratios=RATIOS, evaluation=evaluation, verify=verify
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the counted functions in the order of their calls."""
    done: list[str] = []

    def counting(module: object, name: str) -> None:
        original = getattr(module, name)

        def count(*arguments: object, **named: object) -> object:
            done.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, count)

    counting(estimators, "measure_layers")
    counting(sweep, "open_directory")
    counting(run_texts, "calibration_tokens")
    counting(unit_shapes, "measure_activations")
    counting(publication, "verify_checkpoint")
    counting(scoring, "load_model")
    assert measurement.measure_layers is not estimators.measure_layers
    assert sources.open_directory is not sweep.open_directory
    return done


def test_checkpoints_equal_those_of_single_compressions(
    dense: Path, tmp_path: Path, counted: list[str]
) -> None:
    report = compress_sweep(request(dense, EVALUATION, verify=False), tmp_path / "out")
    # The dense model is loaded once, for generated text and scores; each result once, for scores.
    assert {name: counted.count(name) for name in set(counted)} == {
        "open_directory": 1,
        "calibration_tokens": 1,
        "measure_layers": 1,
        "load_model": 3,
    }
    for point in report.points:
        alone = tmp_path / f"alone-{point.ratio}"
        expected = pipeline.compress_model(
            str(dense),
            alone,
            request(dense).config(SweepChild(method="intraslice_plus", ratio=point.ratio)),
            evaluation=EVALUATION,
            verify=False,
        )
        made = tmp_path / "out" / point.directory
        for name in ("model.safetensors", "config.json"):
            assert (made / name).read_bytes() == (alone / name).read_bytes()
        assert expected.evaluation is not None
        assert point.perplexity == expected.evaluation.perplexity
        assert all(text.kl is not None and text.kl > 0.0 for text in point.perplexity)
        # Of the method's own share, `self` is calibration text, too.
        assert [text.domain for text in point.perplexity] == ["in", "in"]
        assert point.params_after == expected.params_after
        assert point.achieved_ratio == expected.removed_fraction
    stored = (tmp_path / "out" / "sweep.json").read_text()
    assert SweepReport.model_validate_json(stored) == report
    names = ["ratio-0.2", "ratio-0.4", "sweep.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert report.relative_cost(report.points[0]) == 1.0


def test_an_interrupted_sweep_resumes(dense: Path, tmp_path: Path, counted: list[str]) -> None:
    events: list[ProgressEvent] = []

    def in_the_second() -> bool:
        return any(
            "0.4" in event.message and event.stage is Stage.COMPRESS and event.layer == 2
            for event in events
        )

    with pytest.raises(CompressionCancelledError):
        compress_sweep(
            request(dense), tmp_path, on_progress=events.append, should_cancel=in_the_second
        )
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [point["ratio"] for point in points] == [0.2]
    assert not (tmp_path / "ratio-0.4").exists()
    counted.clear()
    report = compress_sweep(request(dense), tmp_path)
    assert [point.ratio for point in report.points] == list(RATIOS)
    assert report.points[1].resumed_layers == 2
    assert counted == ["open_directory", "verify_checkpoint"]
    assert not (tmp_path / ".sweep").exists()
    counted.clear()
    assert compress_sweep(request(dense), tmp_path).points == report.points
    assert counted == ["open_directory"]


def test_results_of_other_settings_are_rejected_and_kept(dense: Path, tmp_path: Path) -> None:
    once = request(dense, verify=False).model_copy(update={"ratios": (0.2,)})
    compress_sweep(once, tmp_path)
    weights = (tmp_path / "ratio-0.2" / "model.safetensors").read_bytes()
    others = (
        once.model_copy(update={"settings": SETTINGS.model_copy(update={"batch_size": 3})}),
        once.model_copy(update={"evaluation": EVALUATION}),
    )
    for other in others:
        with pytest.raises(OutputExistsError, match="other settings"):
            compress_sweep(other, tmp_path)
    namesake = shutil.copytree(dense, tmp_path / "elsewhere" / dense.name)
    config = json.loads((namesake / "config.json").read_text())
    (namesake / "config.json").write_text(json.dumps(config | {"comment": "another model"}))
    with pytest.raises(OutputExistsError, match="another model with the same name"):
        compress_sweep(once.model_copy(update={"model": str(namesake)}), tmp_path)
    moved = once.model_copy(update={"model": f"{dense}/"})
    assert compress_sweep(moved, tmp_path).points[0].resumed_layers == 0
    (tmp_path / "ratio-0.4").mkdir()
    (tmp_path / "ratio-0.4" / "mine").touch()
    with pytest.raises(OutputExistsError, match="already exists"):
        compress_sweep(once.model_copy(update={"ratios": (0.4,)}), tmp_path)
    assert (tmp_path / "ratio-0.2" / "model.safetensors").read_bytes() == weights


def test_a_ratio_out_of_reach_is_rejected_before_any_compression(
    dense: Path, tmp_path: Path
) -> None:
    too_much = SweepRequest(
        model=str(dense), settings=SETTINGS, ratios=(0.2, 0.99), evaluation=None
    )
    stages: list[Stage] = []
    with pytest.raises(BudgetOutOfReachError, match="cannot be removed"):
        compress_sweep(too_much, tmp_path, on_progress=lambda event: stages.append(event.stage))
    assert set(stages) == {Stage.LOAD}


def test_a_ratio_that_fails_the_gate_does_not_stop_the_others(dense: Path, tmp_path: Path) -> None:
    gate = GateConfig(max_perplexity_ratio=1.0 + 1e-6)
    # Nothing predicts text of the dense model better than the dense model.
    strict = EVALUATION.model_copy(update={"gate": gate, "perplexity": ("self",)})
    report = compress_sweep(
        request(dense, strict, verify=False).model_copy(update={"ratios": (0.4, 0.0)}), tmp_path
    )
    rejected, passed = report.points
    assert rejected.refused is not None
    assert "the gate allows" in rejected.refused
    assert rejected.params_after is None
    assert passed.refused is None
    assert not (tmp_path / "ratio-0.4").exists()


def test_progress_covers_the_whole_sweep(dense: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    compress_sweep(request(dense, verify=False), tmp_path, on_progress=events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert events[-1].message.startswith("ratio 0.4: ")


def test_remaining_time_of_a_sweep_contains_the_later_ratios(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("intraslice_core.sweep.time.perf_counter", lambda: now)
    events: list[ProgressEvent] = []
    children = tuple(SweepChild(method="intraslice_plus", ratio=ratio) for ratio in RATIOS)
    progress = sweep._Progress(children, events.append)
    step = ProgressEvent(stage=Stage.COMPRESS, message="", fraction=0.75, eta_seconds=10.0)
    first = progress.of(children[0])
    now = 30.0
    first(step)
    assert events[-1].eta_seconds == pytest.approx(10.0 + 40.0 * sweep.FURTHER_SHARE)
    progress.done(children[0])
    progress.of(children[1])(step)
    assert events[-1].eta_seconds == pytest.approx(10.0)
    assert events[-1].fraction > events[0].fraction
    progress.of(children[1])(step.model_copy(update={"eta_seconds": None}))
    assert events[-1].eta_seconds is None


# -- several methods -----------------------------------------------------------------------------


def comparison(dense: Path, *methods: Method, ratios: tuple[float, ...] = RATIOS) -> SweepRequest:
    return SweepRequest(
        model=str(dense),
        settings=SETTINGS,
        ratios=ratios,
        methods=methods,
        evaluation=None,
        verify=False,
    )


def test_a_killed_comparison_resumes_and_its_methods_share_tokens_and_moments(
    dense: Path, tmp_path: Path, counted: list[str]
) -> None:
    events: list[ProgressEvent] = []

    def in_the_second_method() -> bool:
        return any(event.message.startswith("2ssp, ") for event in events)

    compared = comparison(dense, "flap", "2ssp")
    with pytest.raises(CompressionCancelledError):
        compress_sweep(
            compared, tmp_path, on_progress=events.append, should_cancel=in_the_second_method
        )
    points = json.loads((tmp_path / "bench.json").read_text())["points"]
    assert [(point["method"], point["ratio"]) for point in points] == [("flap", 0.2), ("flap", 0.4)]
    report = compress_sweep(compared, tmp_path)
    # The model is opened by both runs; text and moments of the dense model are of the first.
    assert {name: counted.count(name) for name in set(counted)} == {
        "open_directory": 2,
        "calibration_tokens": 1,
        "measure_activations": 1,
    }
    names = [f"{method}-ratio-{ratio}" for method in ("flap", "2ssp") for ratio in RATIOS]
    assert [point.directory for point in report.points] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "bench.json"])
    assert SweepReport.model_validate_json((tmp_path / "bench.json").read_text()) == report
    alone = tmp_path.parent / f"{tmp_path.name}-alone"
    config = compared.config(SweepChild(method="2ssp", ratio=0.4))
    pipeline.compress_model(str(dense), alone, config, verify=False)
    made = (tmp_path / "2ssp-ratio-0.4" / "model.safetensors").read_bytes()
    assert made == (alone / "model.safetensors").read_bytes()
    assert [(check.ratio, check.equal) for check in report.sizes] == [(0.2, True), (0.4, False)]
    assert report.relative_cost(report.points[2]) == 1.0
    assert all(point.peak_memory_bytes for point in report.points)


def test_only_a_method_with_self_written_text_has_tokens_of_its_own(
    dense: Path, tmp_path: Path, counted: list[str]
) -> None:
    report = compress_sweep(
        comparison(dense, "magnitude", "intraslice_plus", "wanda_sp", ratios=(0.4,)), tmp_path
    )
    assert counted.count("calibration_tokens") == 2
    hashes = [
        json.loads((tmp_path / point.directory / REPORT_FILE).read_text())["calibration_hash"]
        for point in report.points
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_an_impossible_method_or_ratio_is_named_before_any_compression(
    dense: Path, tmp_path: Path
) -> None:
    stock = comparison(dense, "magnitude").model_copy(
        update={"settings": SETTINGS.model_copy(update={"target": "stock"})}
    )
    for impossible, field, message in (
        (comparison(dense, "flap", "magnitude", ratios=(0.2, 0.8)), "ratios", "flap at ratio 0.8"),
        (stock, "methods", "magnitude at ratio 0.2: target stock does not support"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            compress_sweep(impossible, tmp_path / "out")
        assert caught.value.field == field
        assert not list((tmp_path / "out").glob("*-ratio-*"))
    with pytest.raises(ValidationError, match="a method occurs twice"):
        comparison(dense, "flap", "flap")


def test_auto_is_compared_like_a_method_and_a_second_sweep_keeps_its_result(
    dense: Path, tmp_path: Path
) -> None:
    compared = comparison(dense, "auto", "intraslice_plus", ratios=(0.4,))
    report = compress_sweep(compared, tmp_path)
    assert [point.directory for point in report.points] == [
        "auto-ratio-0.4",
        "intraslice_plus-ratio-0.4",
    ]
    stored = json.loads((tmp_path / "auto-ratio-0.4" / REPORT_FILE).read_text())
    assert stored["tournament"]["winner"] == stored["method"] == stored["config"]["method"]
    assert compress_sweep(compared, tmp_path).points == report.points
    # The checkpoint of a method that was named is not one that auto chose.
    (tmp_path / "auto-ratio-0.4").rename(tmp_path / f"{stored['method']}-ratio-0.2")
    with pytest.raises(OutputExistsError, match="other settings"):
        compress_sweep(comparison(dense, stored["method"], ratios=(0.2,)), tmp_path)


def test_sizes_are_equal_within_half_a_percent() -> None:
    checks = check_sizes([(0.3, 995), (0.2, None), (0.3, 1000), (0.2, 9), (0.1, 994), (0.1, 1000)])
    assert [(check.ratio, check.equal) for check in checks] == [(0.1, False), (0.3, True)]
    assert checks[1].warning is None
    assert "994 to 1,000 parameters, 0.6% apart" in str(checks[0].warning)
