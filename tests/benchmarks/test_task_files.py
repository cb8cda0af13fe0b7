"""Task files of the benchmark: the harness scores the items as their description says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.task_files import TWO_CONTEXTS, write_task_files
from intraslice_core.evaluation.tasks import open_tasks, score_tasks
from tests.intraslice_core.tiny_models import tiny_model, tiny_tokenizer

CHOICES = ("an iron nail", "a cup", "the answer's end")


def items(task: str) -> list[dict[str, Any]]:
    """Return items with every label in turn."""
    if task == TWO_CONTEXTS:
        return [
            {
                "contexts": [f"The {name} hit the {noun} so {name}" for name in ("cat", "old dog")],
                "continuation": "fell down.",
                "label": number % 2,
            }
            for number, noun in enumerate(("wall", "tree", "door", "floor", "car", "lamp"))
        ]
    return [
        {
            "context": f"Question: what is {number}?\nAnswer:",
            "choices": CHOICES,
            "label": number % 3,
        }
        for number in range(6)
    ]


def log_likelihood(context: str, continuation: str) -> float:
    """Return the log-likelihood of `" " + continuation` after a context."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    before = tokenizer(context)["input_ids"]
    after = tokenizer(f" {continuation}")["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([before + after])).logits[0].double()
    log_probs = logits[len(before) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, torch.tensor(after)[:, None]).sum().item()


def is_right(item: dict[str, Any], *, by_byte: bool) -> bool:
    if "contexts" in item:
        scores = [log_likelihood(context, item["continuation"]) for context in item["contexts"]]
    else:
        scores = [log_likelihood(item["context"], choice) for choice in item["choices"]]
        if by_byte:
            scores = [
                score / len(choice) for score, choice in zip(scores, item["choices"], strict=True)
            ]
    return scores.index(max(scores)) == item["label"]


@pytest.mark.parametrize("task", ["arc_easy", TWO_CONTEXTS])
def test_accuracy_is_that_of_the_most_likely_continuation(task, tmp_path):
    file = tmp_path / "items.jsonl"
    file.write_text("".join(f"{json.dumps(item)}\n" for item in items(task)))
    write_task_files({task: file}, tmp_path / "tasks")
    opened = open_tasks([task], include_path=tmp_path / "tasks")
    scores = {score.metric: score for score in score_tasks(tiny_model(), tiny_tokenizer(), opened)}
    assert set(scores) == ({"acc"} if task == TWO_CONTEXTS else {"acc", "acc_norm"})
    for metric, score in scores.items():
        right = [is_right(item, by_byte=metric == "acc_norm") for item in items(task)]
        assert score.value == pytest.approx(sum(right) / len(right))
        assert score.shots == 0
    assert 0.0 < scores["acc"].value < 1.0
