"""Zero-shot tasks: scores equal an independent computation, and errors are clear."""

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
    """Write three local tasks and a group."""
    directory = tmp_path_factory.mktemp("tasks")
    data = write_questions(directory, ANSWERS)
    write_choice_task(directory, "letters", data)
    write_choice_task(directory, "more_letters", write_questions(directory / "more", ANSWERS[:4]))
    write_rolling_task(directory, "reading", data)
    write_group(directory, "alphabet", ["letters", "more_letters"])
    return directory


def scored(place: Path, *names: str, **settings: object) -> dict[tuple[str, str], TaskScore]:
    tasks = open_tasks(names, include_path=place, **settings)
    scores = score_tasks(tiny_model(), tiny_tokenizer(), tasks)
    return {(score.task, score.metric): score for score in scores}


@pytest.mark.parametrize("adds_bos", [True, False])
def test_contexts_begin_as_the_tokenizer_begins_a_text(place, adds_bos):
    model, seen = tiny_model(), set()

    def record(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.update(inputs[0][:, 0].tolist())

    model.get_input_embeddings().register_forward_pre_hook(record)
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    score_tasks(model, tokenizer, open_tasks(["letters"], include_path=place))
    assert seen == set(tokenizer("W")["input_ids"][:1])
    assert (seen == {0}) is adds_bos


def likeliest(question: str, *, by_byte: bool) -> int:
    """Return the index of the choice with the highest log-likelihood after the question."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    scores = []
    for choice in CHOICES:
        context = tokenizer(question, add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0].double()
        log_probs = logits[len(context) - 1 : -1].log_softmax(-1)
        score = log_probs.gather(1, torch.tensor(answer)[:, None]).sum().item()
        scores.append(score / len(choice) if by_byte else score)
    return scores.index(max(scores))


def test_accuracy_counts_the_most_likely_choices(place):
    scores = scored(place, "letters")
    for metric, by_byte in (("acc", False), ("acc_norm", True)):
        correct = sum(
            likeliest(f"What is the {index}th letter?", by_byte=by_byte) == answer
            for index, answer in enumerate(ANSWERS)
        )
        score = scores["letters", metric]
        accuracy = correct / len(ANSWERS)
        assert score.value == pytest.approx(accuracy)
        assert (score.examples, score.shots, score.higher_is_better) == (len(ANSWERS), 0, True)
        # The standard error of a mean of zeros and ones, with Bessel's correction.
        stderr = (accuracy * (1 - accuracy) / (len(ANSWERS) - 1)) ** 0.5
        assert score.stderr == pytest.approx(stderr)


def test_a_limit_takes_the_first_examples_and_shots_are_reported(place):
    zero_shot = scored(place, "letters", limit=5)
    two_shot = scored(place, "letters", limit=5, shots=2)
    correct = sum(
        likeliest(f"What is the {index}th letter?", by_byte=False) == answer
        for index, answer in enumerate(ANSWERS[:5])
    )
    assert zero_shot["letters", "acc"].value == pytest.approx(correct / 5)
    assert zero_shot["letters", "acc"].examples == 5
    assert two_shot["letters", "acc"].shots == 2


def test_opened_tasks_give_the_same_model_the_same_scores_again(place):
    tasks = open_tasks(["letters", "reading"], include_path=place, shots=3)
    first, second = (score_tasks(tiny_model(), tiny_tokenizer(), tasks) for _ in range(2))
    assert first == second


def test_a_metric_where_lower_is_better_is_marked(place):
    score = scored(place, "reading")["reading", "bits_per_byte"]
    assert not score.higher_is_better
    assert score.value > 0.0


def test_a_groups_own_metric_replaces_its_members(place):
    scores = scored(place, "alphabet")
    assert set(scores) == {("alphabet", "acc")}
    members = scored(place, "letters", "more_letters")
    weighted = 12 * members["letters", "acc"].value + 4 * members["more_letters", "acc"].value
    assert scores["alphabet", "acc"].value == pytest.approx(weighted / 16)
    assert scores["alphabet", "acc"].examples == 16


def test_an_unknown_name_is_rejected_with_the_way_to_list_names(place):
    with pytest.raises(
        TaskNotFoundError, match=r"evaluation.tasks: no such task: lettres.*ls task"
    ):
        open_tasks(["letters", "lettres"], include_path=place)


def test_a_path_is_not_a_name(place):
    # The harness would read the file and run the code that it names.
    with pytest.raises(TaskNotFoundError):
        open_tasks([str(place / "letters.yaml")], include_path=place)


def test_missing_data_is_distinguished_from_an_unknown_name(tmp_path):
    write_choice_task(tmp_path, "letters", tmp_path / "nowhere.jsonl")
    with pytest.raises(TaskDataError, match=r"letters cannot be read: .*nowhere"):
        open_tasks(["letters"], include_path=tmp_path)


def test_code_of_a_data_set_never_runs(tmp_path):
    """Never run code, even if the task file trusts the data set."""
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


def test_a_task_that_executes_model_output_is_rejected(tmp_path):
    write_choice_task(tmp_path, "letters", write_questions(tmp_path, ANSWERS))
    with (tmp_path / "letters.yaml").open("a") as file:
        file.write("unsafe_code: true\n")
    with pytest.raises(TaskError, match="task letters executes model output"):
        open_tasks(["letters"], include_path=tmp_path)


def test_a_missing_directory_is_rejected(tmp_path):
    with pytest.raises(ConfigurationError, match="none is not a directory"):
        open_tasks(["letters"], include_path=tmp_path / "none")


def test_without_the_harness_the_error_names_the_extra(place, monkeypatch):
    # None makes the package look uninstalled.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        MissingExtraError, match=r'lm_eval cannot be imported.*pip install "intraslice\[eval\]"'
    ):
        open_tasks(["letters"], include_path=place)


def test_scoring_stops_between_forward_passes(place):
    model, tasks = tiny_model(), open_tasks(["letters"], include_path=place)
    answers = iter([False, False, True])
    with pytest.raises(CompressionCancelledError):
        score_tasks(model, tiny_tokenizer(), tasks, should_cancel=lambda: next(answers))
    assert not model._forward_pre_hooks


def test_an_error_of_the_model_is_not_reported_as_a_task_error(place):
    model, tasks = tiny_model(), open_tasks(["letters"], include_path=place)
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes"):
        score_tasks(model, tiny_tokenizer(), tasks)

    def broken(*_, **__):
        raise ValueError("the model failed")

    model.model.forward = broken
    with pytest.raises(ValueError, match="the model failed"):
        score_tasks(model, tiny_tokenizer(), tasks)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_the_harness_prints_nothing_to_stdout(place, capsys):
    scored(place, "letters", "reading")
    assert capsys.readouterr().out == ""
