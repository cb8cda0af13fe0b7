"""The comparison of all methods: its figures, and its run on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from intraslice_core.config import METHOD_DESCRIPTIONS
from intraslice_core.reports.tournament import TournamentCandidate, TournamentReport
from tests.intraslice_core.tiny_models import tiny_llama

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import methods as module

    return module


def measured(*divergences: float, method: str = "flap", seconds: float = 10.0, **more: Any) -> Any:
    """Return what a measurement has of these divergences, one for each text."""
    scores = [
        SimpleNamespace(text=f"text {number}", dense=10.0, compressed=12.0 + value, kl=value)
        for number, value in enumerate(divergences)
    ]
    return SimpleNamespace(
        perplexity=scores, method=method, compression_seconds=seconds, tournament=None, **more
    )


def auto(method: str, *divergences: float, seconds: float) -> Any:
    tournament = TournamentReport(
        winner=method,
        reason=f"{method} diverged least",
        candidates=(
            TournamentCandidate(method=method, kl=0.5, seconds=1.0),
            TournamentCandidate(method="magnitude", reason="too short"),
        ),
        calibration_tokens=64,
        seconds=seconds,
    )
    result = measured(*divergences, method=method)
    result.tournament = tournament
    return result


def test_the_winner_is_ranked_by_the_mean_divergence_of_the_full_runs(methods: Any) -> None:
    by_method = {
        "intraslice_plus": measured(0.1, 0.5),
        "flap": measured(0.4, 0.4, seconds=20.0),
        "2ssp": measured(0.2, 0.5),
        "auto": auto("flap", 0.4, 0.4, seconds=15.0),
    }
    fact = methods.choice(by_method)
    assert fact["winner"] == "flap"
    assert fact["kl"] == pytest.approx({"intraslice_plus": 0.3, "flap": 0.4, "2ssp": 0.35})
    assert fact["rank_of_winner"] == 3
    assert fact["cost"] == pytest.approx(35.0 / 20.0)
    assert fact["trial_kl"] == {"flap": 0.5}
    assert fact["excluded"] == {"magnitude": "too short"}
    assert not methods.targets({"model": {"0.3": fact}})["met"]
    assert methods.targets({"model": {"0.3": {**fact, "rank_of_winner": 2}}})["met"]
    costly = {**fact, "rank_of_winner": 1, "cost": 2.1}
    assert not methods.targets({"model": {"0.3": costly}})["met"]
    assert methods.targets({})["met"] is None


def test_perplexities_are_by_ratio_method_and_text_with_the_dense_model(methods: Any) -> None:
    comparison = methods.Comparison(scores={"0.3": {"flap": measured(0.25, 0.5)}})
    assert comparison.perplexity() == {
        "0": {"dense": {"text 0": 10.0, "text 1": 10.0}},
        "0.3": {"flap": {"text 0": 12.25, "text 1": 12.5}},
    }
    assert comparison.choices() == {}


def test_all_methods_of_the_registry_and_auto_are_measured_by_default(
    methods: Any, tmp_path: Path
) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("words")
    line = ["--calibration", str(text), "--evaluation", str(text), "--ratios", "0.20,0.5", "--qwen"]
    arguments = methods.parse_arguments(line)
    assert arguments.methods == [*METHOD_DESCRIPTIONS, "auto"]
    assert arguments.ratios == ["0.2", "0.5"]
    assert arguments.model[-1] == "qwen2.5-coder-1.5b"
    assert len(arguments.texts) == 3


def run(model: Path, state: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "--model", str(model)]
    command += ["--state", str(state), "--methods", "magnitude,shortgpt,auto", "--ratios", "0.3"]
    command += ["--calibration", "pydoc", "--evaluation", "pydoc", "--also", "pycode"]
    command += ["--samples", "16", "--sequence-length", "32", "--evaluation-tokens", "128"]
    done = subprocess.run(
        [*command, "--context-length", "32", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def test_a_bounded_run_says_what_is_missing_and_the_next_one_resumes(tmp_path: Path) -> None:
    model, state = tiny_llama(tmp_path / "tiny"), tmp_path / "state"
    cut = run(model, state, "--max-seconds", "0")
    assert cut["complete"] is False
    assert cut["perplexity"] == {str(model): {}}
    facts = run(model, state)
    assert facts["complete"] is True
    scores = facts["perplexity"][str(model)]
    assert [*scores] == ["0", "0.3"]
    assert [*scores["0.3"]] == ["magnitude", "shortgpt", "auto"]
    assert [*scores["0.3"]["auto"]] == ["pydoc", "pycode"]
    fact = facts["auto"][str(model)]["0.3"]
    assert fact["winner"] in METHOD_DESCRIPTIONS
    assert fact["rank_of_winner"] >= 1
    assert len(fact["trial_kl"]) > 5
    assert run(model, state, "--max-seconds", "600") == facts
