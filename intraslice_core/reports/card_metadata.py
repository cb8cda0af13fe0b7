"""Metadata of a model card, as the Hugging Face hub reads it: licence, base model, results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from intraslice_core.reports.references import (
    hub_repository,
    model_name,
    public_reference,
    text_name,
)
from intraslice_core.reports.schema import CompressionReport, PerplexityComparison, TaskComparison
from intraslice_core.text_sources import HUB, WEB, WEB_DATASET, WEB_REVISION

_TASK = "text-generation"
_SEE = "see "
_METRIC_IDS = {"acc": "accuracy", "acc_norm": "accuracy"}
"""Ids of metrics on the hub that have another name in lm-evaluation-harness."""


def card_data(report: CompressionReport, licence_files: Sequence[str]) -> ModelCardData:
    """Return the metadata of the card of a report's result.

    Args:
        report: report of the compression.
        licence_files: names of the licence files in the checkpoint.
    """
    results = [*_results(report)]
    metrics = {_METRIC_IDS.get(result.metric_type, result.metric_type) for result in results}
    return ModelCardData(
        base_model=hub_repository(report.model),
        library_name="transformers",
        **_licence(report.base_licence, licence_files),
        pipeline_tag=_TASK,
        tags=[
            "intraslice",
            "pruned",
            "compressed",
            report.method,
            f"target-{report.config.target}",
        ],
        metrics=sorted(metrics) or None,
        model_name=f"{model_name(report.model)}-compressed" if results else None,
        eval_results=results or None,
    )


def _licence(base: str | None, files: Sequence[str]) -> dict[str, Any]:
    """Return the licence fields; a licence that has no id is named by its file."""
    if base is None:
        return {}
    if base.startswith(_SEE) or base == "other":
        link = base.removeprefix(_SEE) if base.startswith(_SEE) else next(iter(files), None)
        return {"license": "other", "license_name": "as-base-model", "license_link": link}
    names = [name.strip() for name in base.split(",")]
    return {"license": names if len(names) > 1 else base}


def _results(report: CompressionReport) -> Iterator[EvalResult]:
    """Yield the results that are numbers."""
    if report.evaluation is None:
        return
    for text in report.evaluation.perplexity:
        if math.isfinite(text.compressed):
            yield _perplexity(text)
    for task in report.evaluation.tasks:
        if math.isfinite(task.compressed):
            yield _score(task)


def _perplexity(text: PerplexityComparison) -> EvalResult:
    is_web = text.text == WEB
    dataset = WEB_DATASET if is_web else public_reference(text.text).removeprefix(HUB)
    name, _, split = dataset.partition("@")
    name, _, config = name.partition(":")
    return EvalResult(
        task_type=_TASK,
        task_name="Text generation",
        dataset_type=name,
        dataset_name=text_name(text.text),
        dataset_config=config or None,
        dataset_split=split or None,
        dataset_revision=WEB_REVISION if is_web else None,
        dataset_args=_without_none(
            {"context_length": text.context_length, "tokens": text.tokens, "domain": text.domain}
        ),
        metric_type="perplexity",
        metric_name=f"Perplexity (original: {text.dense:.4g})",
        metric_value=_rounded(text.compressed),
    )


def _score(task: TaskComparison) -> EvalResult:
    return EvalResult(
        task_type=_TASK,
        task_name="Text generation",
        dataset_type=task.task,
        dataset_name=task.task,
        dataset_args={"num_few_shot": task.shots, "examples": task.examples},
        metric_type=task.metric,
        metric_name=f"{task.metric} (original: {task.dense:.4g})",
        metric_value=_rounded(task.compressed),
    )


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rounded(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{value:.6g}")
