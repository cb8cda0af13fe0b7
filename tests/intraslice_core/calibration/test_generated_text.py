"""Laws of the text that a model writes itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from intraslice_core.calibration import own_text, write_own_tokens
from intraslice_core.calibration.conversations import conversation_layout, prompts
from intraslice_core.config import CalibrationPart
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.progress import never_cancelled
from tests.intraslice_core.tiny_models import tiny_model, tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START, END = 259, 260


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Ends an answer as often as it writes one of the bytes, and writes no other special token."""
    model = tiny_model(vocab_size=261, tie_word_embeddings=False)
    with torch.no_grad():
        # A logit of zero is far from the likeliest.
        model.lm_head.weight[[0, 1, 2, START]] = 0.0
        model.lm_head.weight[END] = model.lm_head.weight[100]
    return model


@pytest.fixture(scope="module")
def chatty() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def order(source: str, samples: int = 3, length: int = 400, seed: int = 0) -> CalibrationPart:
    return CalibrationPart(source=source, samples=samples, sequence_length=length, seed=seed)


def write(model: Any, tokenizer: Any, order: CalibrationPart, **named: Any) -> Tensor:
    return write_own_tokens(model, tokenizer, order, should_cancel=never_cancelled, **named)


def asked(tokenizer: Any, row: Tensor) -> list[str]:
    """The user's turns of a sequence."""
    turns = tokenizer.decode(row).split("<|im_start|>user\n")[1:]
    return [turn.partition("<|im_end|>")[0] for turn in turns]


def test_prompts_are_a_few_hundred_of_many_kinds_and_languages():
    lines = Path(own_text.__file__).with_name("prompts.jsonl").read_text("utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    assert 300 <= len(known) <= 600
    assert len({one["prompt"] for one in known}) == len(known)
    assert len({one["kind"] for one in known}) >= 10
    assert len({one["language"] for one in known}) >= 20
    assert max(len(one["prompt"]) for one in known) <= 200


def test_evaluation_asks_what_calibration_never_did():
    calibration, evaluation = prompts("calibration"), prompts("evaluation")
    assert not set(calibration) & set(evaluation)
    assert len(calibration) > 2 * len(evaluation) > 100


def test_conversations_are_prompts_of_the_part_in_the_models_template(model, chatty):
    for part in ("calibration", "evaluation"):
        follow_ups = 0
        for row in write(model, chatty, order("chat", samples=8), part=part):
            text = chatty.decode(row)
            assert text.startswith("<|im_start|>user\n")
            questions = asked(chatty, row)
            # The end of a sequence may cut the last one.
            assert set(questions[:-1]) <= set(prompts(part))
            # An answer that has ended is closed as the template closes it, then comes a prompt.
            assert text.count("<|im_end|>\n<|im_start|>user\n") == len(questions) - 1
            follow_ups += len(questions) - 1
        assert follow_ups > 0


def test_prompts_come_round_before_any_comes_again(model, chatty):
    rows = write(model, chatty, order("chat", samples=6))
    counts = Counter(question for row in rows for question in asked(chatty, row)[:-1])
    assert sum(counts.values()) < len(prompts("calibration"))
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("source", ["self", "chat"])
def test_what_is_written_repeats_and_differs_by_seed_and_part(model, chatty, source):
    first = write(model, chatty, order(source))
    assert torch.equal(first, write(model, chatty, order(source)))
    assert not torch.equal(first, write(model, chatty, order(source, seed=1)))
    assert not torch.equal(first, write(model, chatty, order(source), part="evaluation"))


def test_answers_are_the_models_own_choice_among_its_likeliest(model, chatty):
    tokens = write(model, chatty, order("chat", samples=2, length=300))
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1]
    chosen = logits.gather(-1, tokens[:, 1:, None])
    likely = (logits > chosen + 1e-4).sum(-1) < own_text.TOP_K
    begins = chatty("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    answered = 0
    for row, is_likely in zip(tokens.tolist(), likely.tolist(), strict=True):
        in_answer = False
        for place in range(1, len(row)):
            if in_answer:
                answered += 1
                assert is_likely[place - 1]
            if row[place] == END:
                in_answer = False
            elif row[place + 1 - len(begins) : place + 1] == begins:
                in_answer = True
    assert answered > 100


def test_a_model_without_a_template_gets_a_plain_layout(model):
    tokenizer = tiny_tokenizer()
    for row in write(model, tokenizer, order("chat", length=300)):
        text = tokenizer.decode(row)
        assert text.startswith("<s>User: ")
        question, _, answer = text.removeprefix("<s>User: ").partition("\nAssistant:")
        assert question in prompts("calibration")
        assert answer


def test_a_template_that_fails_is_explained(model, chatty):
    chatty = tiny_tokenizer()
    chatty.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(CalibrationSourceError, match=r"template cannot be used.*system first"):
        write(model, chatty, order("chat"))


def test_a_template_cannot_reach_out_of_its_sandbox(model):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(CalibrationSourceError, match="template cannot be used"):
        write(model, tokenizer, order("chat"))


def test_a_template_that_prints_the_date_gives_the_same_text_tomorrow(model, chatty):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + CHATML
    layout = conversation_layout(model, tokenizer, "calibration")
    assert {tokenizer.decode(one).partition("<")[0] for one in layout.openings} == {"26 Jul 2024 "}


def test_a_closing_like_any_other_text_does_not_end_answers(model):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    layout = conversation_layout(model, tokenizer, "calibration")
    assert layout.closing == ()
    assert layout.ends == {tokenizer.eos_token_id}


def test_room_for_all_keys_changes_no_token(model, chatty, monkeypatch):
    """The library's own cache, which grows by copying, is the reference."""
    from transformers import DynamicCache

    roomy = write(model, chatty, order("chat"))
    monkeypatch.setattr(own_text, "_roomy_cache", lambda one, _: DynamicCache(config=one.config))
    assert torch.equal(roomy, write(model, chatty, order("chat")))


def test_batches_are_as_few_and_as_equal_as_memory_allows(model, chatty, monkeypatch):
    assert list(own_text._batches(128, 45)) == [43, 43, 42]
    assert list(own_text._batches(5, 128)) == [5]
    a_token = 3 * 2 * 2 * 16 * 4
    monkeypatch.setattr(own_text, "WRITING_CACHE_BYTES", a_token * 16 * 2 + 1)
    assert own_text._most_rows(model, 16) == 2
    assert own_text._most_rows(model, 10_000) == 1
    assert write(model, chatty, order("self", samples=5, length=16)).shape == (5, 16)
