"""Zero-shot tasks are scored as a reader of their definition would, and refused in clear words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from intraslice_core.errors import (
    CompressionCancelledError,
    ConfigurationError,
    MissingExtraError,
    TaskDataError,
    TaskError,
    TaskNotFoundError,
)
from intraslice_core.evaluation.tasks import TaskScore, open_tasks, score_tasks
from tests.intraslice_core.evaluation.local_tasks import (
    CHOICES,
    write_choice_task,
    write_group,
    write_questions,
    write_rolling_task,
)
from tests.intraslice_core.tiny_models import tiny_model, tiny_tokenizer

ANSWERS = [0, 1, 2, 1, 1, 0, 2, 2, 0, 1, 2, 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three local tasks and a group."""
    directory = tmp_path_factory.mktemp("tasks")
    data = write_questions(directory, ANSWERS)
    write_choice_task(directory, "letters", data)
    write_choice_task(directory, "more_letters", write_questions(directory / "more", ANSWERS[:4]))
    write_rolling_task(directory, "reading", data)
    write_group(directory, "alphabet", ["letters", "more_letters"])
    return directory


def scored(place: Path, *names: str, **settings: object) -> dict[tuple[str, str], TaskScore]:
    tasks = open_tasks(names, include_path=place, **settings)
    found = score_tasks(tiny_model(), tiny_tokenizer(), tasks)
    return {(one.task, one.metric): one for one in found}


def likeliest(question: str, *, by_byte: bool) -> int:
    """The choice of the highest log-likelihood behind the question, a choice at a time."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    scores = []
    for choice in CHOICES:
        context = tokenizer(question, add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0].double()
        told = logits[len(context) - 1 : -1].log_softmax(-1)
        score = told.gather(1, torch.tensor(answer)[:, None]).sum().item()
        scores.append(score / len(choice) if by_byte else score)
    return scores.index(max(scores))


def test_accuracy_counts_the_likeliest_choices(place):
    found = scored(place, "letters")
    for metric, by_byte in (("acc", False), ("acc_norm", True)):
        right = sum(
            likeliest(f"What is the {index}th letter?", by_byte=by_byte) == answer
            for index, answer in enumerate(ANSWERS)
        )
        one = found["letters", metric]
        accuracy = right / len(ANSWERS)
        assert one.value == pytest.approx(accuracy)
        assert (one.examples, one.shots, one.higher_is_better) == (len(ANSWERS), 0, True)
        # Of a mean of zeros and ones, with Bessel's correction.
        assert one.stderr == pytest.approx((accuracy * (1 - accuracy) / (len(ANSWERS) - 1)) ** 0.5)


def test_a_limit_takes_the_first_examples_and_shots_are_shown(place):
    plain, shown = scored(place, "letters", limit=5), scored(place, "letters", limit=5, shots=2)
    right = sum(
        likeliest(f"What is the {index}th letter?", by_byte=False) == answer
        for index, answer in enumerate(ANSWERS[:5])
    )
    assert plain["letters", "acc"].value == pytest.approx(right / 5)
    assert plain["letters", "acc"].examples == 5
    assert shown["letters", "acc"].shots == 2


def test_the_same_model_scores_the_same_on_tasks_opened_once(place):
    tasks = open_tasks(["letters", "reading"], include_path=place, shots=3)
    first, second = (score_tasks(tiny_model(), tiny_tokenizer(), tasks) for _ in range(2))
    assert first == second


def test_a_metric_that_is_better_when_lower_says_so(place):
    one = scored(place, "reading")["reading", "bits_per_byte"]
    assert not one.higher_is_better
    assert one.value > 0.0


def test_of_a_group_its_own_metric_is_reported_alone(place):
    found = scored(place, "alphabet")
    assert set(found) == {("alphabet", "acc")}
    parts = scored(place, "letters", "more_letters")
    weighted = 12 * parts["letters", "acc"].value + 4 * parts["more_letters", "acc"].value
    assert found["alphabet", "acc"].value == pytest.approx(weighted / 16)
    assert found["alphabet", "acc"].examples == 16


def test_a_name_that_is_unknown_is_refused_with_the_way_to_list_names(place):
    with pytest.raises(
        TaskNotFoundError, match=r"evaluation.tasks: no such task: lettres.*ls task"
    ):
        open_tasks(["letters", "lettres"], include_path=place)


def test_a_path_is_no_name(place):
    # The harness would read the file, and run the code that it names.
    with pytest.raises(TaskNotFoundError):
        open_tasks([str(place / "letters.yaml")], include_path=place)


def test_data_that_is_not_there_is_told_from_a_wrong_name(tmp_path):
    write_choice_task(tmp_path, "letters", tmp_path / "nowhere.jsonl")
    with pytest.raises(TaskDataError, match=r"letters cannot be read: .*nowhere"):
        open_tasks(["letters"], include_path=tmp_path)


def test_a_data_set_brings_no_code(tmp_path):
    """Not even where the task file trusts it."""
    scripts = tmp_path / "letters_data"
    scripts.mkdir()
    (scripts / "letters_data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    write_choice_task(tmp_path, "letters", tmp_path / "none.jsonl")
    file = tmp_path / "letters.yaml"
    lines = file.read_text().replace("dataset_path: json", f"dataset_path: {scripts}")
    file.write_text(lines.replace("dataset_kwargs:", "dataset_kwargs:\n  trust_remote_code: true"))
    with pytest.raises(TaskDataError):
        open_tasks(["letters"], include_path=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_task_that_executes_what_a_model_writes_is_refused(tmp_path):
    write_choice_task(tmp_path, "letters", write_questions(tmp_path, ANSWERS))
    with (tmp_path / "letters.yaml").open("a") as file:
        file.write("unsafe_code: true\n")
    with pytest.raises(TaskError, match="letters executes what the model writes"):
        open_tasks(["letters"], include_path=tmp_path)


def test_a_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is no directory"):
        open_tasks(["letters"], include_path=tmp_path / "none")


def test_without_the_extra_the_error_names_it(place, monkeypatch):
    # What an interpreter without the package finds.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r'pip install "intraslice\[eval\]"'):
        open_tasks(["letters"], include_path=place)


def test_scoring_stops_between_forward_passes(place):
    model, tasks = tiny_model(), open_tasks(["letters"], include_path=place)
    asked = iter([False, False, True])
    with pytest.raises(CompressionCancelledError):
        score_tasks(model, tiny_tokenizer(), tasks, should_cancel=lambda: next(asked))
    assert not model._forward_pre_hooks


def test_a_fault_of_the_model_is_not_laid_at_the_tasks_door(place):
    model, tasks = tiny_model(), open_tasks(["letters"], include_path=place)
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes"):
        score_tasks(model, tiny_tokenizer(), tasks)

    def broken(*_, **__):
        raise ValueError("ours")

    model.model.forward = broken
    with pytest.raises(ValueError, match="ours"):
        score_tasks(model, tiny_tokenizer(), tasks)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_nothing_of_the_harness_reaches_stdout(place, capsys):
    scored(place, "letters", "reading")
    assert capsys.readouterr().out == ""
