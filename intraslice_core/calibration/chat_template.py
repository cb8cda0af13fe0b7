"""Rendering of chats with the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from intraslice_core.calibration.records import Message

# Templates that print the current date would give another text on another day.
_NO_TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] = (),
    asks_for_answer: bool = False,
) -> str:
    """Return a chat as the template writes it, with the template's own special tokens as text.

    Args:
        tokenizer: tokenizer with a chat template.
        messages: the turns, each with `role` and `content`.
        tools: descriptions of tools, as the template takes them.
        asks_for_answer: end with the beginning of an answer.

    Raises:
        Exception: any, because a template is a program that comes with the model.
    """
    descriptions = list(tools) or None
    template = tokenizer.get_chat_template(tools=descriptions)
    text = tokenizer.apply_chat_template(
        list(messages),
        tools=descriptions,
        chat_template=_NO_TODAY + template,
        tokenize=False,
        add_generation_prompt=asks_for_answer,
    )
    if not isinstance(text, str):
        raise TypeError("the template does not return text")
    return text
