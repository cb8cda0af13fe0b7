"""The process of a generation: every outcome becomes one message, and none quotes the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.generation import PlaygroundModel
from intraslice_core.config import FrozenModel
from intraslice_core.evaluation import generation as engine
from tests.intraslice_core.tiny_models import tiny_llama
from workers.generation_child import run
from workers.messages import AnswerMessage, FailedMessage, GenerationInput, PromptedModel


def make_input(tmp_path: Path, *places: Path) -> GenerationInput:
    return GenerationInput(
        prompt="a secret",
        max_new_tokens=4,
        temperature=None,
        seed=0,
        models=tuple(
            PromptedModel(model=model, place=str(place))
            for model, place in zip(PlaygroundModel, places, strict=False)
        ),
        scratch=tmp_path,
        dtype="float32",
        device="cpu",
    )


def messages(process_input: GenerationInput) -> list[FrozenModel]:
    sent: list[FrozenModel] = []
    run(process_input, sent.append)
    return sent


def test_each_model_answers_in_turn(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    dense, compressed = messages(make_input(tmp_path, model, model))
    assert isinstance(dense, AnswerMessage)
    assert isinstance(compressed, AnswerMessage)
    assert (dense.answer.model, compressed.answer.model) == tuple(PlaygroundModel)
    assert dense.answer.text == compressed.answer.text
    assert dense.answer.tokens_per_second == dense.answer.new_tokens / dense.answer.seconds


def test_an_engine_error_ends_the_generation_with_its_code(tmp_path: Path) -> None:
    (failed,) = messages(make_input(tmp_path, tmp_path / "nothing", tmp_path / "nothing"))
    assert isinstance(failed, FailedMessage)
    assert failed.code == "model_not_found"


def test_an_unexpected_error_does_not_quote_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_directory: Path, prompt: str, *_others: object, **_named: object) -> None:
        raise ValueError(f"cannot continue {prompt}")

    monkeypatch.setattr(engine, "continue_prompt", broken)
    (failed,) = messages(make_input(tmp_path, tiny_llama(tmp_path / "model")))
    assert isinstance(failed, FailedMessage)
    assert (failed.code, failed.message) == ("internal_error", "ValueError in the engine")
    output = capfd.readouterr()
    assert "a secret" not in output.out + output.err
