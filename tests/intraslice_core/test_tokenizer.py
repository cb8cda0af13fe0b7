"""Loading of tokenizers, and tokens that a model has no embedding for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core.calibration import generate_tokens
from intraslice_core.config import (
    HELD_OUT_SEQUENCES,
    CalibrationPart,
    CompressionConfig,
    EvaluationConfig,
)
from intraslice_core.errors import TokenizerError
from intraslice_core.evaluation.comparison import evaluate_one
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.tasks import _PassHooks
from intraslice_core.evaluation.texts import check_texts
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import never_cancelled
from intraslice_core.tokenizer import load_tokenizer
from tests.intraslice_core.tiny_models import VOCAB_SIZE, tiny_llama, tiny_tokenizer

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def content(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text)


def remove(*names: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return change


def sentencepiece(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(b"garbage")
    settings(tokenizer_class="LlamaTokenizer")(directory)


def gpt2_without_merges(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text('{"a": 0}')
    settings(tokenizer_class="GPT2Tokenizer")(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
        (remove("tokenizer.json"), "has no tokenizer"),
        (content("tokenizer.json", "{"), r"tokenizer.json is not valid JSON: .*line 1"),
        (content("tokenizer.json", "[" * 9000), r"tokenizer.json is not valid JSON"),
        (content("tokenizer.json", LFS), r"tokenizer.json is a git-lfs pointer.*git lfs pull"),
        (content("tokenizer.json", "[]"), r"tokenizer.json is not a JSON object"),
        (content("tokenizer.json", "{}"), "cannot be loaded: KeyError"),
        (content("tokenizer_config.json", LFS), r"tokenizer_config.json is a git-lfs pointer"),
        (content("tokenizer_config.json", "3"), r"tokenizer_config.json is not a JSON object"),
        (settings(added_tokens_decoder={"x": 3}), "cannot be loaded: TypeError"),
        (
            settings(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
            r"code of the checkpoint .evil.Evil., which is never executed",
        ),
        (sentencepiece, "cannot be loaded"),
        (gpt2_without_merges, r"vocab.json, but no merges.txt"),
        (
            content(
                "tokenizer.json",
                json.dumps(
                    {
                        "version": "1.0",
                        "added_tokens": [],
                        "model": {"type": "BPE", "vocab": {}, "merges": []},
                    }
                ),
            ),
            "no vocabulary besides special tokens",
        ),
    ],
)
def test_unusable_tokenizers_are_described(tmp_path, change, message):
    tiny_tokenizer().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "trust_remote_code" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose tokenizer has one token more than the embedding."""
    directory = tiny_llama(tmp_path_factory.mktemp("models") / "larger")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(directory)
    assert len(tokenizer) == VOCAB_SIZE + 1
    return directory


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "new.txt"
    path.write_text("".join(f"{n:05} words " for n in range(LENGTH))[: LENGTH - 1] + "<new>")
    return str(path)


LENGTH = 17 * 200
"""Tokens of the text."""
MESSAGE = rf"contains token '<new>' with id {VOCAB_SIZE}, .* only {VOCAB_SIZE} rows"


@pytest.mark.parametrize("place", ["calibration", "recover", "perplexity", "prompts"])
def test_unknown_token_is_named_before_the_compression(larger, tmp_path, text, place, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("the compression has begun")

    monkeypatch.setattr("intraslice_core.pipeline.choose_shapes", fail)
    calibration = {"source": "pydoc", "samples": 4, "sequence_length": 16}
    recover = None
    evaluation = EvaluationConfig(benchmark=False)
    if place == "calibration":  # all windows, so that the last token is among them
        calibration = {"source": text, "samples": LENGTH // 17, "sequence_length": 17}
    elif place == "recover":
        tokens = LENGTH - HELD_OUT_SEQUENCES * 17
        recover = {"source": text, "max_tokens": tokens, "sequence_length": 17}
    else:
        value = (text,) if place == "perplexity" else ("a <new> word",)
        evaluation = evaluation.model_copy(update={place: value})
    config = CompressionConfig.model_validate(
        {"calibration": calibration, "recover": recover, "device": "cpu"}
    )
    with pytest.raises(TokenizerError, match=MESSAGE):
        compress_model(str(larger), tmp_path / "out", config, evaluation=evaluation)


def test_unknown_token_is_named_before_an_evaluation(larger, text):
    config = EvaluationConfig(perplexity=(text,), benchmark=False)
    with pytest.raises(TokenizerError, match=MESSAGE):
        evaluate_one(larger, config, device="cpu")


def test_unknown_token_of_a_chat_template_is_named(larger):
    tokenizer = load_tokenizer(larger)
    tokenizer.chat_template = "{% for message in messages %}<new>{{ message.content }}{% endfor %}"
    with pytest.raises(TokenizerError, match=MESSAGE):
        check_texts(EvaluationConfig(perplexity=("chat",)), tokenizer, VOCAB_SIZE)
    part = CalibrationPart(source="chat", samples=1, sequence_length=16, seed=0)
    model = load_model(larger, dtype="float32", device="cpu")
    with pytest.raises(TokenizerError, match=MESSAGE):
        generate_tokens(model, tokenizer, part, should_cancel=never_cancelled)


def test_unknown_token_of_a_task_is_named(larger):
    model = load_model(larger, dtype="float32", device="cpu")
    hooks = _PassHooks(never_cancelled, load_tokenizer(larger))
    with pytest.raises(TokenizerError, match=f"a task {MESSAGE}"):
        hooks.before(model, (torch.tensor([[1, VOCAB_SIZE]]),), {})
