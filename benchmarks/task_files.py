"""Task files of lm-evaluation-harness for the items of `data.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TWO_CONTEXTS = "winogrande"
"""Task that scores one continuation after each of two contexts."""


def write_task_files(files: Mapping[str, Path], folder: Path) -> None:
    """Write a task file for the items of every task.

    Args:
        files: items by task, as `data.TASK_FILES` describes them.
        folder: created.
    """
    folder.mkdir()
    for task, file in files.items():
        text = yaml.safe_dump(task_settings(task, file), sort_keys=False)
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")


def task_settings(task: str, file: Path) -> dict[str, Any]:
    """Return a task of lm-evaluation-harness on a file of items."""
    metrics = ["acc"] if task == TWO_CONTEXTS else ["acc", "acc_norm"]
    fields = ("context", "choices", "label")
    if task == TWO_CONTEXTS:
        fields = ("label", "contexts", "continuation")
    question, choices, target = (f"{{{{{name}}}}}" for name in fields)
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": question,
        "doc_to_choice": choices,
        "doc_to_target": target,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
    }
