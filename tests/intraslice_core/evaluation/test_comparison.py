"""Both models are scored on the same held-out tokens, and a bad result is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, LlamaForCausalLM

from intraslice_core import device
from intraslice_core.calibration import generate_tokens
from intraslice_core.calibration.conversations import prompts
from intraslice_core.config import EvaluationConfig, GateConfig, SpeedPoint
from intraslice_core.errors import (
    CalibrationSourceError,
    CompressionCancelledError,
    MeasurementError,
    QualityGateError,
)
from intraslice_core.evaluation import comparison, perplexity
from intraslice_core.evaluation.clean_process import CleanProcess
from intraslice_core.evaluation.comparison import (
    DenseScores,
    Materials,
    check_gate,
    evaluate_one,
    evaluate_pair,
)
from intraslice_core.evaluation.perplexity import evaluation_tokens, written_tokens
from intraslice_core.evaluation.tasks import OpenedTasks, open_tasks
from intraslice_core.reports.schema import TaskComparison
from tests.intraslice_core.evaluation.local_tasks import write_choice_task, write_questions
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

CONFIG = EvaluationConfig(max_tokens=256, context_length=64, benchmark=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a damaged twin."""
    root = tmp_path_factory.mktemp("pair")
    model = tiny_model()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return tiny_llama(root / "dense"), save_checkpoint(model, root / "damaged")


def reference(directory: Path) -> float:
    """Perplexity by transformers' own loss, window by window."""
    model = LlamaForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = evaluation_tokens("pydoc", tokenizer, 256).view(4, 64)
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.double() for row in tokens]
    return torch.stack(losses).mean().exp().item()


def test_both_perplexities_are_those_of_transformers(pair):
    events = []
    report = evaluate_pair(*pair, CONFIG, on_progress=events.append)
    (entry,) = report.perplexity
    assert entry.text == "pydoc"
    assert entry.tokens == 4 * 63
    assert entry.dense == pytest.approx(reference(pair[0]), rel=1e-4)
    assert entry.compressed == pytest.approx(reference(pair[1]), rel=1e-4)
    assert report.speed is None
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_one_model_is_scored_alone(pair):
    results = evaluate_one(pair[0], CONFIG)
    assert results.perplexity["pydoc"].perplexity == pytest.approx(reference(pair[0]), rel=1e-4)


def test_gate_refuses_a_worse_model_and_lets_an_equal_one_pass(pair):
    gate = GateConfig(max_perplexity_ratio=1.001)
    config = CONFIG.model_copy(update={"gate": gate})
    evaluate_pair(pair[0], pair[0], config)
    worst = max(pair, key=reference)
    best = min(pair, key=reference)
    with pytest.raises(QualityGateError, match=r"perplexity on pydoc grew .* allows 1\.001"):
        evaluate_pair(best, worst, config)


def local_tasks(place: Path) -> OpenedTasks:
    write_choice_task(place / "tasks", "letters", write_questions(place / "tasks", [0, 1, 2, 0]))
    return open_tasks(["letters"], include_path=place / "tasks")


def test_tasks_are_scored_by_both_and_a_dense_model_only_once(pair, tmp_path):
    tasks, known = local_tasks(tmp_path), DenseScores()
    first = evaluate_pair(*pair, CONFIG, materials=Materials(tasks=tasks, known=known))
    assert [(one.task, one.metric, one.examples) for one in first.tasks] == [
        ("letters", "acc", 4),
        ("letters", "acc_norm", 4),
    ]
    kept = known.tasks
    again = evaluate_pair(*pair, CONFIG, materials=Materials(tasks=tasks, known=known))
    assert known.tasks is kept
    assert again == first


def task(metric: str, dense: float, compressed: float, *, higher: bool = True) -> TaskComparison:
    return TaskComparison(
        task="letters",
        metric=metric,
        higher_is_better=higher,
        examples=10,
        shots=0,
        dense=dense,
        compressed=compressed,
    )


def test_gate_refuses_lost_accuracy_and_grown_error():
    gate = GateConfig(min_task_ratio=0.9)
    passed = (task("acc", 0.5, 0.45), task("bits_per_byte", 9.0, 10.0, higher=False))
    check_gate((), (*passed, task("exact_match", 0.0, 0.0)), gate)
    with pytest.raises(QualityGateError, match=r"letters keeps 0\.800 of its acc .* asks for 0\.9"):
        check_gate((), (*passed, task("acc", 0.5, 0.4)), gate)
    for worse in (10.1, float("nan")):
        with pytest.raises(QualityGateError, match="bits_per_byte"):
            check_gate((), (task("bits_per_byte", 9.0, worse, higher=False),), gate)


def test_a_gate_that_limits_nothing_or_what_is_not_measured_is_refused():
    with pytest.raises(ValidationError, match="needs max_perplexity_ratio or min_task_ratio"):
        GateConfig()
    with pytest.raises(ValidationError, match="min_task_ratio needs tasks"):
        EvaluationConfig(gate=GateConfig(min_task_ratio=0.9))


def test_the_part_of_a_text_that_was_calibrated_on_is_told(pair):
    text = evaluation_tokens("pydoc", AutoTokenizer.from_pretrained(pair[0]), 256)
    other = torch.arange(256).view(2, 128)
    for calibration, expected in ((text.view(1, -1), 1.0), (other, 0.0)):
        report = evaluate_pair(*pair, CONFIG, materials=Materials(calibration=calibration))
        assert report.perplexity[0].calibration_overlap == expected
    assert evaluate_pair(*pair, CONFIG).perplexity[0].calibration_overlap is None


def test_loads_are_measured_without_the_benchmark(pair):
    points = (SpeedPoint(batch_size=2, context_length=8),)
    report = evaluate_pair(*pair, CONFIG.model_copy(update={"speed_grid": points}))
    assert report.speed is None
    (one,) = report.speed_grid
    assert one.cache_per_token.ratio == 1.0
    assert one.decode.ratio > 0.0


def test_texts_are_read_before_any_model_is_loaded(pair, tmp_path):
    config = CONFIG.model_copy(update={"perplexity": ("nonsense",)})
    (tmp_path / "none").mkdir()
    with pytest.raises(CalibrationSourceError, match="unknown source"):
        evaluate_pair(pair[0], tmp_path / "none", config)


@pytest.mark.parametrize("source", ["self", "chat"])
def test_the_dense_model_writes_once_and_both_are_scored_on_it(pair, source, monkeypatch):
    written = []

    def counted(*arguments: object, **named: object) -> torch.Tensor:
        written.append(generate_tokens(*arguments, **named))
        return written[-1]

    monkeypatch.setattr(perplexity, "generate_tokens", counted)
    config = CONFIG.model_copy(update={"perplexity": (source, "pydoc")})
    report = evaluate_pair(*pair, config)
    assert [entry.text for entry in report.perplexity] == [source, "pydoc"]
    (tokens,) = written
    assert tokens.shape == (256 // 64, 64)
    for directory, found in zip(
        pair, (report.perplexity[0].dense, report.perplexity[0].compressed), strict=True
    ):
        model = LlamaForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            losses = [model(row[None], labels=row[None]).loss.double() for row in tokens]
        assert found == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-4)


def test_no_calibration_has_seen_what_is_written_for_evaluation(pair):
    model = LlamaForCausalLM.from_pretrained(pair[0])
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    tokens = written_tokens("chat", model, tokenizer, max_tokens=512, context_length=256)
    assert tokens.shape == (512,)
    beginnings = {tokenizer.decode(row)[:12] for row in tokens.view(2, 256)}
    assert beginnings <= {f"<s>User: {prompt}"[:12] for prompt in prompts("evaluation")}
    assert torch.equal(
        tokens, written_tokens("chat", model, tokenizer, max_tokens=512, context_length=256)
    )


def test_a_model_alone_is_not_scored_on_what_the_dense_one_would_write(pair):
    with pytest.raises(CalibrationSourceError, match=r"chat.*generated by the dense model"):
        evaluate_one(pair[0], CONFIG.model_copy(update={"perplexity": ("chat",)}))


def test_benchmark_measures_every_part(pair, monkeypatch):
    from intraslice_core.evaluation import timing

    monkeypatch.setattr(device, "_variables_set", set())
    short = {"batch_size": 1, "prompt_tokens": 8, "new_tokens": 2, "repeats": 1}
    monkeypatch.setattr(timing, "_BENCHMARK", short)
    report = evaluate_pair(*pair, CONFIG.model_copy(update={"benchmark": True}))
    for part in ("whole", "layers", "attention", "mlp"):
        assert getattr(report.speed, part).decode.ratio > 0


@pytest.fixture
def few_kernels(monkeypatch):
    """As after the beginning of a compression, wherever in the tests' process that was."""
    for name in device._ENVIRONMENT:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(device, "_variables_set", set(device._ENVIRONMENT))


def test_after_a_compression_another_process_takes_the_time(pair, few_kernels, monkeypatch):
    monkeypatch.setattr(comparison, "compare_speeds", None)  # not here
    points = (SpeedPoint(batch_size=2, context_length=8),)
    settings = {"speed_grid": points, "benchmark": True}
    report = evaluate_pair(*pair, CONFIG.model_copy(update=settings))
    assert report.speed.layers.decode.ratio > 0
    assert report.speed_grid[0].cache_per_token.ratio == 1.0


def test_that_process_keeps_as_many_kernels_as_it_likes(few_kernels, monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[2], 'w'))\n"
    )
    monkeypatch.setattr(device, "_variables_set", {"LRU_CACHE_CAPACITY"})
    process = CleanProcess(program=str(program), arguments=[], fails=MeasurementError)
    found = process.ask(None, lambda: False)
    assert "LRU_CACHE_CAPACITY" not in found
    assert found["THP_MEM_ALLOC_ENABLE"] == "7"  # the user's own stays


def test_a_speed_that_cannot_be_measured_is_said_with_the_reason(pair, few_kernels, tmp_path):
    settings = CONFIG.model_copy(update={"benchmark": True})
    with pytest.raises(MeasurementError, match="speed could not be measured"):
        comparison._compare_speeds(
            pair[0], tmp_path / "none", settings, ("float32", "cpu"), lambda: False
        )
    with pytest.raises(CompressionCancelledError):
        comparison._compare_speeds(*pair, settings, ("float32", "cpu"), lambda: True)
