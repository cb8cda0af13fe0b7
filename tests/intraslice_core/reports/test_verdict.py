"""The verdict follows from the worst unseen text and the worst task, by documented thresholds."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from intraslice_core.reports.schema import EvaluationReport, PerplexityComparison, TaskComparison
from intraslice_core.reports.verdict import (
    THRESHOLDS,
    ScoredText,
    report_verdict,
    verdict,
)
from tests.intraslice_core.reports.samples import report

ROOT = Path(__file__).parents[3]
DOCUMENTATION = ROOT / "docs" / "results.md"
DASHBOARD = ROOT / "app" / "dashboard" / "views" / "job" / "verdict.js"


def text(ratio: float, domain: str | None = "out", name: str = "wiki") -> ScoredText:
    return ScoredText(name=name, dense=20.0, compressed=20.0 * ratio, domain=domain)


def task(dense: float, compressed: float, stderr: float | None = None) -> TaskComparison:
    return TaskComparison(
        task="arc_easy",
        metric="acc",
        higher_is_better=True,
        examples=100,
        shots=0,
        dense=dense,
        compressed=compressed,
        dense_stderr=stderr,
        compressed_stderr=stderr,
    )


@pytest.mark.parametrize(
    ("ratio", "level", "tone"),
    [
        (0.9, "negligible", "ok"),
        (1.05, "negligible", "ok"),
        (1.06, "small", "ok"),
        (1.35, "noticeable", "warn"),
        (1.51, "strong", "bad"),
        (2.01, "severe", "bad"),
        (math.inf, "severe", "bad"),
        (math.nan, "severe", "bad"),
    ],
)
def test_the_level_follows_from_the_perplexity_ratio(ratio: float, level: str, tone: str) -> None:
    result = verdict([text(ratio)], ())
    assert (result.level, result.tone) == (level, tone)


def test_the_worst_unseen_text_decides_whatever_the_others_say() -> None:
    texts = [text(1.1), text(1.35, name="/data/private/mine.txt"), text(9.0, "in")]
    noticeable = verdict(texts, ())
    assert noticeable.title == "Noticeable quality loss"
    assert noticeable.reasons == ("Perplexity rose 35 % on mine.txt, unseen text (20 → 27).",)
    assert noticeable.advice is not None
    assert noticeable.text.startswith("Noticeable quality loss. Perplexity rose")


def test_without_unseen_text_the_verdict_is_never_good() -> None:
    optimistic = verdict([text(1.01, "in")], ())
    assert optimistic.title == "Almost no quality loss on calibration text"
    assert optimistic.tone == "info"
    assert optimistic.reasons[-1] == "No unseen text was scored: real use is likely worse."


def test_a_task_can_be_worse_than_the_texts() -> None:
    result = verdict([text(1.01)], [task(0.5, 0.49), task(0.5, 0.40)])
    assert result.level == "strong"
    assert (
        result.reasons[-1] == "arc_easy keeps 80.0 % of the original's acc, the least of all tasks."
    )


def test_a_difference_within_the_standard_errors_is_no_loss() -> None:
    assert verdict((), [task(0.5, 0.45, stderr=0.05)]).level == "negligible"
    assert verdict((), [task(0.5, 0.45, stderr=0.001)]).level == "noticeable"


def test_nothing_measured_is_no_verdict() -> None:
    for evaluation in (None, EvaluationReport()):
        unknown = report_verdict(report().model_copy(update={"evaluation": evaluation}))
        assert (unknown.level, unknown.tone) == ("unknown", "info")


def test_large_increases_are_factors_and_small_ones_no_change() -> None:
    assert "is 3.50× the original's" in verdict([text(3.5)], ()).text  # noqa: RUF001
    assert "is that of the original" in verdict([text(1.0001)], ()).text
    assert "fell 4.0 %" in verdict([text(0.96)], ()).text


def test_domains_of_old_reports_follow_from_the_sources() -> None:
    scored = PerplexityComparison(
        text="pydoc", context_length=64, tokens=64, dense=10.0, compressed=10.2
    )
    old = report().model_copy(update={"evaluation": EvaluationReport(perplexity=(scored,))})
    assert report_verdict(old).title.endswith("on calibration text")


def test_the_documentation_has_the_thresholds() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENTATION.read_text(), re.M
    )
    limits = {level: (title, ratio, score) for level, title, ratio, score in rows}
    for threshold in THRESHOLDS:
        title, ratio, score = limits[threshold.level]
        assert title == threshold.title
        if math.isinf(threshold.max_perplexity_ratio):
            assert (ratio, score) == ("above", "below")
        else:
            assert float(ratio) == threshold.max_perplexity_ratio
            assert float(score) == threshold.min_task_ratio


def test_the_dashboard_has_the_same_levels() -> None:
    table = DASHBOARD.read_text().partition("LEVELS = [")[2].partition("];")[0]
    levels = re.findall(r'\[([\d.]+|Infinity), (-?[\d.]+|-Infinity), "([^"]+)\.", "(\w+)"\]', table)
    assert [(float(most), float(least), title, tone) for most, least, title, tone in levels] == [
        (threshold.max_perplexity_ratio, threshold.min_task_ratio, threshold.title, threshold.tone)
        for threshold in THRESHOLDS
    ]
