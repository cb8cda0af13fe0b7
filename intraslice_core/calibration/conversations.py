"""How a conversation with a model is laid out, and what it is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.python_text import Part
from intraslice_core.calibration.sources import FIELDS
from intraslice_core.errors import CalibrationSourceError

_PROMPTS = Path(__file__).with_name("prompts.jsonl")
_HELD_OUT = 4
"""One prompt of so many is for evaluation."""

_PLAIN = "User: {prompt}\nAssistant:"
"""For models without a chat template."""

_ANSWER = "answer-goes-here"

# Templates that print today's date would make other text tomorrow.
_NO_TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Token ids around what is said."""

    openings: tuple[tuple[int, ...], ...]
    """One a prompt: all that comes before the model's answer."""
    ends: frozenset[int]
    """Any of them ends an answer."""
    closing: tuple[int, ...]
    """What the template puts after an answer; begins with one of `ends`, or is empty."""


class Conversations:
    """Prompts for a model that writes one conversation after the other."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self._layout = layout
        self._order = _shuffled(len(layout.openings), seed)

    def opening(self) -> Sequence[int]:
        """What a text begins with."""
        return self._layout.openings[next(self._order)]

    def after(self, token: int) -> Sequence[int]:
        """What must follow a token of the model's choice: the next prompt after an answer."""
        if token not in self._layout.ends:
            return ()
        ending = self._layout.closing
        rest = ending[1:] if ending and ending[0] == token else ()
        return (*rest, *self.opening())


def prompts(part: Part) -> list[str]:
    """What a part asks; a digest of the prompt decides, so new prompts move no old one."""
    lines = _PROMPTS.read_text(encoding="utf-8").splitlines()
    known: list[str] = [json.loads(line)["prompt"] for line in lines]
    wanted = part == "evaluation"
    return [prompt for prompt in known if _is_held_out(prompt) is wanted]


def conversation_layout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Part
) -> Layout:
    """By the model's chat template, or plain where it has none.

    Raises:
        CalibrationSourceError: if the template cannot be rendered.
    """
    ends = _end_tokens(model, tokenizer)
    if tokenizer.chat_template is None:
        return Layout(openings=_plain_openings(tokenizer, part), ends=ends, closing=())
    try:
        openings = tuple(
            _ids(tokenizer, _rendered(tokenizer, [("user", prompt)])) for prompt in prompts(part)
        )
        turns = [("user", prompts(part)[0]), ("assistant", _ANSWER)]
        closing = _ids(tokenizer, _rendered(tokenizer, turns).rpartition(_ANSWER)[2])
    # A template is a program of the model's: it may fail in any way.
    except Exception as error:
        raise CalibrationSourceError(
            f"the model's chat template cannot be used: {type(error).__name__}: {error}",
            field=FIELDS[part],
            hint="use `self` or another source",
        ) from error
    # A closing that begins like any other text could not be told from an answer.
    if not closing or closing[0] not in ends | set(tokenizer.added_tokens_decoder):
        return Layout(openings=openings, ends=ends, closing=())
    return Layout(openings=openings, ends=ends | {closing[0]}, closing=closing)


def _is_held_out(prompt: str) -> bool:
    return hashlib.sha256(prompt.encode()).digest()[0] % _HELD_OUT == 0


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count`, all of them before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        chat_template=_NO_TODAY + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=turns[-1][0] == "user",
    )
    if not isinstance(text, str):
        raise TypeError("the template gives no text")
    return text


def _plain_openings(tokenizer: PreTrainedTokenizerBase, part: Part) -> tuple[tuple[int, ...], ...]:
    first = tokenizer.bos_token_id
    before = (first,) if isinstance(first, int) else ()
    texts = (_PLAIN.format(prompt=prompt) for prompt in prompts(part))
    return tuple(before + _ids(tokenizer, text) for text in texts)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that tokenizer, model or generation settings call an end."""
    found: set[int] = set()
    generation = getattr(model.generation_config, "eos_token_id", None)
    for named in (tokenizer.eos_token_id, model.config.eos_token_id, generation):
        if isinstance(named, int):
            found.add(named)
        elif isinstance(named, list):
            found.update(named)
    return frozenset(found)
