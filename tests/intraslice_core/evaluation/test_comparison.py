"""Both models are scored on the same held-out tokens, and the gate rejects a bad result."""

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
from intraslice_core.evaluation import perplexity, speeds
from intraslice_core.evaluation.clean_process import CleanProcess
from intraslice_core.evaluation.comparison import (
    Materials,
    check_gate,
    evaluate_one,
    evaluate_pair,
)
from intraslice_core.evaluation.perplexity import evaluation_tokens, written_tokens
from intraslice_core.evaluation.scoring import DenseScores, ModelScores
from intraslice_core.evaluation.tasks import OpenedTasks, open_tasks
from intraslice_core.reports.schema import TaskComparison
from tests.intraslice_core.evaluation.local_tasks import write_choice_task, write_questions
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

CONFIG = EvaluationConfig(max_tokens=256, context_length=64, benchmark=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Save a model, and the same model with all MLPs zeroed."""
    root = tmp_path_factory.mktemp("pair")
    model = tiny_model()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return tiny_llama(root / "dense"), save_checkpoint(model, root / "zeroed")


def reference(directory: Path) -> float:
    """Compute the perplexity with transformers' own loss, window by window."""
    model = LlamaForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = evaluation_tokens("pydoc", tokenizer, 256).view(4, 64)
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.double() for row in tokens]
    return torch.stack(losses).mean().exp().item()


def test_both_perplexities_equal_transformers(pair):
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


def test_the_gate_rejects_a_worse_model_and_accepts_an_equal_one(pair):
    gate = GateConfig(max_perplexity_ratio=1.001)
    config = CONFIG.model_copy(update={"gate": gate})
    evaluate_pair(pair[0], pair[0], config)
    worst = max(pair, key=reference)
    best = min(pair, key=reference)
    with pytest.raises(
        QualityGateError,
        match=r"perplexity on pydoc is .* times the dense model's .* allows at most 1\.001",
    ):
        evaluate_pair(best, worst, config)


def local_tasks(folder: Path) -> OpenedTasks:
    directory = folder / "tasks"
    write_choice_task(directory, "letters", write_questions(directory, [0, 1, 2, 0]))
    return open_tasks(["letters"], include_path=directory)


def test_tasks_are_scored_by_both_and_a_dense_model_only_once(pair, tmp_path):
    cache = DenseScores()
    materials = Materials(tasks=local_tasks(tmp_path), dense_scores=cache)
    first = evaluate_pair(*pair, CONFIG, materials=materials)
    assert [(score.task, score.metric, score.examples) for score in first.tasks] == [
        ("letters", "acc", 4),
        ("letters", "acc_norm", 4),
    ]
    dense_tasks = cache.scores.tasks
    second = evaluate_pair(*pair, CONFIG, materials=materials)
    assert cache.scores.tasks is dense_tasks
    assert second == first


def test_dense_scores_are_dropped_with_other_settings():
    cache = DenseScores(key="a", scores=ModelScores(perplexity={}, tasks=()))
    assert cache.get("a") is cache.scores is not None
    assert cache.get("b") is None
    assert (cache.key, cache.texts, cache.scores) == ("b", {}, None)


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


def test_the_gate_rejects_lower_accuracy_and_higher_error():
    gate = GateConfig(min_task_ratio=0.9)
    passed = (task("acc", 0.5, 0.45), task("bits_per_byte", 9.0, 10.0, higher=False))
    check_gate((), (*passed, task("exact_match", 0.0, 0.0)), gate)
    with pytest.raises(
        QualityGateError, match=r"letters retains 0\.800 of its acc .* requires at least 0\.900"
    ):
        check_gate((), (*passed, task("acc", 0.5, 0.4)), gate)
    for worse in (10.1, float("nan")):
        with pytest.raises(QualityGateError, match="bits_per_byte"):
            check_gate((), (task("bits_per_byte", 9.0, worse, higher=False),), gate)


def test_a_gate_without_a_limit_or_without_its_measurement_is_rejected():
    with pytest.raises(ValidationError, match="needs max_perplexity_ratio or min_task_ratio"):
        GateConfig()
    with pytest.raises(ValidationError, match="min_task_ratio needs tasks"):
        EvaluationConfig(gate=GateConfig(min_task_ratio=0.9))


def test_the_overlap_of_a_text_with_the_calibration_is_reported(pair):
    text = evaluation_tokens("pydoc", AutoTokenizer.from_pretrained(pair[0]), 256)
    unrelated = torch.arange(256).view(2, 128)
    for calibration, expected in ((text.view(1, -1), 1.0), (unrelated, 0.0)):
        report = evaluate_pair(*pair, CONFIG, materials=Materials(calibration=calibration))
        assert report.perplexity[0].calibration_overlap == expected
    assert evaluate_pair(*pair, CONFIG).perplexity[0].calibration_overlap is None


def test_divergence_of_a_pair_is_reported_and_that_of_a_model_from_itself_is_zero(pair):
    (different,) = evaluate_pair(*pair, CONFIG).perplexity
    assert different.kl > 5 * different.kl_stderr > 0.0
    assert 0.0 <= different.top1_agreement < 1.0
    (same,) = evaluate_pair(pair[0], pair[0], CONFIG).perplexity
    assert same.kl == pytest.approx(0.0, abs=1e-9)
    assert same.top1_agreement == 1.0


def test_models_with_other_vocabularies_have_no_divergence(pair, tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(300)
    other = save_checkpoint(model, tmp_path / "other")
    (entry,) = evaluate_pair(pair[0], other, CONFIG).perplexity
    assert entry.compressed > 0.0
    assert (entry.kl, entry.kl_stderr, entry.top1_agreement) == (None, None, None)


def test_scores_cached_without_outputs_give_no_divergence(pair):
    cache = DenseScores()
    evaluate_pair(*pair, CONFIG, materials=Materials(dense_scores=cache))
    assert cache.outputs.hidden["pydoc"].shape == (4 * 63, 48)
    cache.outputs = None
    (entry,) = evaluate_pair(*pair, CONFIG, materials=Materials(dense_scores=cache)).perplexity
    assert entry.compressed > 0.0
    assert entry.kl is None


def test_domains_follow_from_the_sources_and_from_the_overlap(pair):
    def domain(**materials: object) -> str | None:
        return evaluate_pair(*pair, CONFIG, materials=Materials(**materials)).perplexity[0].domain

    text = evaluation_tokens("pydoc", AutoTokenizer.from_pretrained(pair[0]), 256).view(1, -1)
    assert domain() is None
    assert domain(seen_sources=("pycode", "pydoc")) == "in"
    assert domain(seen_sources=("pycode",)) == "out"
    assert domain(seen_sources=("copied.txt",), calibration=text) == "in"


def test_loads_are_measured_without_the_benchmark(pair):
    points = (SpeedPoint(batch_size=2, context_length=8),)
    report = evaluate_pair(*pair, CONFIG.model_copy(update={"speed_grid": points}))
    assert report.speed is None
    (load,) = report.speed_grid
    assert load.cache_per_token.ratio == 1.0
    assert load.decode.ratio > 0.0


def test_texts_are_read_before_any_model_is_loaded(pair, tmp_path):
    config = CONFIG.model_copy(update={"perplexity": ("nonsense",)})
    (tmp_path / "none").mkdir()
    with pytest.raises(CalibrationSourceError, match="unknown source"):
        evaluate_pair(pair[0], tmp_path / "none", config)


@pytest.mark.parametrize("source", ["self", "chat"])
def test_the_dense_model_writes_once_and_both_are_scored_on_it(pair, source, monkeypatch):
    written = []

    def record(*arguments: object, **named: object) -> torch.Tensor:
        written.append(generate_tokens(*arguments, **named))
        return written[-1]

    monkeypatch.setattr(perplexity, "generate_tokens", record)
    config = CONFIG.model_copy(update={"perplexity": (source, "pydoc")})
    report = evaluate_pair(*pair, config)
    assert [entry.text for entry in report.perplexity] == [source, "pydoc"]
    (tokens,) = written
    assert tokens.shape == (256 // 64, 64)
    scores = (report.perplexity[0].dense, report.perplexity[0].compressed)
    for directory, score in zip(pair, scores, strict=True):
        model = LlamaForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            losses = [model(row[None], labels=row[None]).loss.double() for row in tokens]
        assert score == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-4)


def test_evaluation_text_is_written_from_prompts_that_calibration_never_uses(pair):
    model = LlamaForCausalLM.from_pretrained(pair[0])
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    tokens = written_tokens("chat", model, tokenizer, max_tokens=512, context_length=256)
    assert tokens.shape == (512,)
    beginnings = {tokenizer.decode(row)[:12] for row in tokens.view(2, 256)}
    assert beginnings <= {f"<s>User: {prompt}"[:12] for prompt in prompts("evaluation")}
    assert torch.equal(
        tokens, written_tokens("chat", model, tokenizer, max_tokens=512, context_length=256)
    )


def test_a_single_model_is_not_scored_on_text_of_the_dense_model(pair):
    with pytest.raises(CalibrationSourceError, match=r"chat.*generated by the dense model"):
        evaluate_one(pair[0], CONFIG.model_copy(update={"perplexity": ("chat",)}))


def test_benchmark_measures_every_part(pair, monkeypatch):
    from intraslice_core.evaluation import timing

    monkeypatch.setattr(device, "_variables_set", set())
    short = {"batch_size": 1, "new_tokens": 2, "repeats": 1}
    monkeypatch.setattr(timing, "_BENCHMARK", short)
    monkeypatch.setattr(timing, "_BENCHMARK_PROMPT", 8)
    report = evaluate_pair(*pair, CONFIG.model_copy(update={"benchmark": True}))
    for part in ("whole", "layers", "attention", "mlp"):
        assert getattr(report.speed, part).decode.ratio > 0


@pytest.fixture
def few_kernels(monkeypatch):
    """Set the environment as a compression in this process sets it."""
    for name in device._ENVIRONMENT:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(device, "_variables_set", set(device._ENVIRONMENT))


def test_after_a_compression_a_clean_process_measures_the_speed(pair, few_kernels, monkeypatch):
    monkeypatch.setattr(speeds, "compare_speeds", None)  # fails if called in this process
    points = (SpeedPoint(batch_size=2, context_length=8),)
    settings = {"speed_grid": points, "benchmark": True}
    report = evaluate_pair(*pair, CONFIG.model_copy(update=settings))
    assert report.speed.layers.decode.ratio > 0
    assert report.speed_grid[0].cache_per_token.ratio == 1.0


def test_the_clean_process_has_no_limit_on_cached_kernels(few_kernels, monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[2], 'w'))\n"
    )
    monkeypatch.setattr(device, "_variables_set", {"LRU_CACHE_CAPACITY"})
    process = CleanProcess(program=str(program), arguments=[], make_error=MeasurementError)
    environment = process.run(None, lambda: False)
    assert "LRU_CACHE_CAPACITY" not in environment
    assert environment["THP_MEM_ALLOC_ENABLE"] == "7"  # the user's own setting stays


def test_a_failed_speed_measurement_is_an_error_with_the_reason(pair, few_kernels, tmp_path):
    settings = CONFIG.model_copy(update={"benchmark": True})
    with pytest.raises(MeasurementError, match="speed could not be measured"):
        speeds.compare_speeds_apart(
            pair[0], tmp_path / "none", settings, ("float32", "cpu"), lambda: False
        )
    with pytest.raises(CompressionCancelledError):
        speeds.compare_speeds_apart(*pair, settings, ("float32", "cpu"), lambda: True)
