"""Conversations with the model for source `chat`: prompts and the chat template's token layout."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.chat_template import render_chat
from intraslice_core.calibration.python_text import Part
from intraslice_core.calibration.sources import FIELDS
from intraslice_core.errors import CalibrationSourceError

_PROMPTS = Path(__file__).with_name("prompts.jsonl")
_HELD_OUT = 4
"""Number of prompts per held-out one, which is for evaluation only."""

_PLAIN = "User: {prompt}\nAssistant:"
"""Layout of a conversation for models without a chat template."""

_ANSWER = "answer-goes-here"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Token ids before and after the answers of a conversation."""

    openings: tuple[tuple[int, ...], ...]
    """Tokens before the model's answer, one sequence per prompt."""
    ends: frozenset[int]
    """Tokens that end an answer."""
    closing: tuple[int, ...]
    """Tokens that the template adds after an answer; empty, or begins with one of `ends`."""


class Conversations:
    """Prompts for a model that writes conversations in one sequence.

    Args:
        layout: tokens of the prompts and of what follows answers.
        prompts: numbers of the sequence's prompts, in order and without end.
    """

    def __init__(self, layout: Layout, prompts: Iterator[int]) -> None:
        self._layout, self._prompts = layout, prompts

    def opening(self) -> Sequence[int]:
        """Return the first tokens of a sequence."""
        return self._layout.openings[next(self._prompts)]

    def after(self, token: int) -> Sequence[int]:
        """Return the tokens that follow a generated one: after an answer, the next prompt."""
        if token not in self._layout.ends:
            return ()
        closing = self._layout.closing
        rest = closing[1:] if closing and closing[0] == token else ()
        return (*rest, *self.opening())


class PromptOrder:
    """Random order of the prompts without end: all of them, then all of them anew.

    Sequences take their prompts from it in turn. Which ones a sequence gets does not depend on when
    its answers end, or on the other sequences.

    Args:
        count: number of prompts.
        seed: of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []

    def of_sequence(self, index: int, sequences: int) -> Iterator[int]:
        """Yield the prompts of a sequence, numbers below the count."""
        for place in itertools.count(index, sequences):
            while place >= len(self._order):
                self._order += torch.randperm(self._count, generator=self._generator).tolist()
            yield self._order[place]


def prompts(part: Part) -> list[str]:
    """Return the prompts of a part.

    A digest of each prompt determines its part, so new prompts do not move old ones.
    """
    lines = _PROMPTS.read_text(encoding="utf-8").splitlines()
    all_prompts: list[str] = [json.loads(line)["prompt"] for line in lines]
    held_out = part == "evaluation"
    return [prompt for prompt in all_prompts if _is_held_out(prompt) is held_out]


def conversation_layout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Part
) -> Layout:
    """Return the layout of the model's chat template, or a plain one if it has none.

    Raises:
        CalibrationSourceError: if the template cannot be rendered.
    """
    ends = _end_tokens(model, tokenizer)
    openings = opening_tokens(tokenizer, part)
    if tokenizer.chat_template is None:
        return Layout(openings=openings, ends=ends, closing=())
    with _template_errors(part):
        turns = [("user", prompts(part)[0]), ("assistant", _ANSWER)]
        closing = _ids(tokenizer, _rendered(tokenizer, turns).rpartition(_ANSWER)[2])
    # A closing that begins with an ordinary token could not be distinguished from an answer.
    if not closing or closing[0] not in ends | set(tokenizer.added_tokens_decoder):
        return Layout(openings=openings, ends=ends, closing=())
    return Layout(openings=openings, ends=ends | {closing[0]}, closing=closing)


def opening_tokens(tokenizer: PreTrainedTokenizerBase, part: Part) -> tuple[tuple[int, ...], ...]:
    """Return the tokens before the model's answer to each prompt.

    Raises:
        CalibrationSourceError: if the chat template cannot be rendered.
    """
    if tokenizer.chat_template is None:
        return _plain_openings(tokenizer, part)
    with _template_errors(part):
        return tuple(
            _ids(tokenizer, _rendered(tokenizer, [("user", prompt)])) for prompt in prompts(part)
        )


@contextmanager
def _template_errors(part: Part) -> Iterator[None]:
    """Report any error of the chat template, which is a program that comes with the model."""
    try:
        yield
    except Exception as error:
        raise CalibrationSourceError(
            f"the model's chat template cannot be rendered: {type(error).__name__}: {error}",
            field=FIELDS[part],
            hint="use `self` or another source",
        ) from error


def _is_held_out(prompt: str) -> bool:
    return hashlib.sha256(prompt.encode()).digest()[0] % _HELD_OUT == 0


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return render_chat(tokenizer, messages, asks_for_answer=turns[-1][0] == "user")


def _plain_openings(tokenizer: PreTrainedTokenizerBase, part: Part) -> tuple[tuple[int, ...], ...]:
    bos = tokenizer.bos_token_id
    before = (bos,) if isinstance(bos, int) else ()
    texts = (_PLAIN.format(prompt=prompt) for prompt in prompts(part))
    return tuple(before + _ids(tokenizer, text) for text in texts)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the end tokens of the tokenizer, the model and the generation settings."""
    end_tokens: set[int] = set()
    generation = getattr(model.generation_config, "eos_token_id", None)
    for eos in (tokenizer.eos_token_id, model.config.eos_token_id, generation):
        if isinstance(eos, int):
            end_tokens.add(eos)
        elif isinstance(eos, list):
            end_tokens.update(eos)
    return frozenset(end_tokens)
