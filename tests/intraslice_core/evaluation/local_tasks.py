"""Task files of lm-evaluation-harness with local data, so that nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHOICES = ("alpha", "bet", "gamma ray")
"""Answer choices of different lengths, so that acc and acc_norm may differ."""

_CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    train: {data}
    test: {data}
output_type: multiple_choice
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""

_ROLLING = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""

_GROUP = """\
group: {name}
task:
{members}
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


def write_questions(directory: Path, answers: Sequence[int]) -> Path:
    """Write one question for each answer and return the file."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "questions.jsonl"
    lines = (
        {"question": f"What is the {index}th letter?", "choices": CHOICES, "answer": answer}
        for index, answer in enumerate(answers)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_choice_task(directory: Path, name: str, data: Path) -> None:
    (directory / f"{name}.yaml").write_text(_CHOICE.format(name=name, data=data))


def write_rolling_task(directory: Path, name: str, data: Path) -> None:
    (directory / f"{name}.yaml").write_text(_ROLLING.format(name=name, data=data))


def write_group(directory: Path, name: str, members: Sequence[str]) -> None:
    listed = "\n".join(f"  - {member}" for member in members)
    (directory / f"{name}.yaml").write_text(_GROUP.format(name=name, members=listed))
