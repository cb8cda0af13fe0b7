"""Forms of records: the text or the chat that a record of a data set contains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""A chat message as chat templates take it: `role`, `content` and perhaps `tool_calls`."""

KNOWN_FIELDS = (
    *("text", "content", "messages", "conversations", "prompt", "completion"),
    *("instruction", "input", "output", "question", "answer", "tools"),
)
"""Fields that are read without `text_field`."""

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_MOST_NAMES = 12
_SURROGATE = re.compile("[\ud800-\udfff]")


class RecordError(Exception):
    """A record that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record of a file or data set, or the reason why there is none."""

    place: str
    """Place in its source, for messages: `line 3`."""
    content: Any = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation, and the descriptions of the tools that it uses."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()

    def plain_text(self) -> str:
        """Return `role: content` paragraphs, for models without a chat template."""
        return "\n\n".join(f"{turn['role']}: {_plain_content(turn)}" for turn in self.messages)


def document_of(record: Any, text_field: str | None) -> str | Chat:
    """Return the text or the chat of a record.

    Args:
        record: a string, or an object in one of the known forms.
        text_field: name of the field that holds the text or the messages; None looks for the
            known ones.

    Raises:
        RecordError: if the record has no known form, or its text is not valid Unicode text.
    """
    document = _document(record, text_field)
    if isinstance(document, str):
        require_text(document)
    else:
        for message in document.messages:
            require_text(message["role"])
            require_text(_plain_content(message))
    return document


def require_text(text: str) -> None:
    """Raise if a text contains what no tokenizer accepts, or what no text contains.

    Undecodable bytes are lone surrogates from U+DC80 (`errors="surrogateescape"`).

    Raises:
        RecordError: naming the character or the byte.
    """
    surrogate = _SURROGATE.search(text)
    if surrogate is not None:
        code = ord(surrogate.group())
        byte = code - 0xDC00
        if 0x80 <= byte <= 0xFF:
            raise RecordError(f"not UTF-8 text: invalid byte 0x{byte:02x}")
        raise RecordError(f"not Unicode text: lone surrogate \\u{code:04x}")
    if "\0" in text:
        raise RecordError("not text: it contains a NUL character")


def _document(record: Any, text_field: str | None) -> str | Chat:
    if isinstance(record, str) and text_field is None:
        return record
    if not isinstance(record, Mapping):
        raise RecordError(f"not an object with fields but {_kind(record)}")
    if text_field is not None:
        return _named_field(record, text_field)
    for form in (_text, _chat, _prompt, _question):
        document = form(record)
        if document is not None:
            return document
    raise RecordError(f"none of its fields is known ({_names(record)})")


def _named_field(record: Mapping[str, Any], name: str) -> str | Chat:
    if name not in record:
        raise RecordError(f"no field {name!r} ({_names(record)})")
    value = record[name]
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _messages(value, record)
    raise RecordError(f"`{name}` is {_kind(value)}, not text or messages")


def _text(record: Mapping[str, Any]) -> str | None:
    for name in ("text", "content"):
        value = record.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise RecordError(f"`{name}` is {_kind(value)}, not text")
        return value
    return None


def _chat(record: Mapping[str, Any]) -> Chat | None:
    for name in ("messages", "conversations"):
        value = record.get(name)
        if value is None:
            continue
        if not isinstance(value, list):
            raise RecordError(f"`{name}` is {_kind(value)}, not a list of messages")
        return _messages(value, record)
    return None


def _prompt(record: Mapping[str, Any]) -> str | Chat | None:
    """Return a prompt continued by its completion: texts are joined, messages form one chat."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if prompt is None or completion is None:
        return None
    if isinstance(prompt, str) and isinstance(completion, str):
        joined = prompt[-1:].isspace() or completion[:1].isspace() or not (prompt and completion)
        return prompt + ("" if joined else "\n") + completion
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages([*prompt, *completion], record)
    raise RecordError("`prompt` and `completion` are neither texts nor lists of messages")


def _question(record: Mapping[str, Any]) -> Chat | None:
    """Return an instruction with its output, or a question with its answer, as a chat."""
    for task, answer in (("instruction", "output"), ("question", "answer")):
        if record.get(task) is None or record.get(answer) is None:
            continue
        context = record.get("input") if task == "instruction" else None
        parts = (record[task], record[answer], context or "")
        if not all(isinstance(part, str) for part in parts):
            raise RecordError(f"`{task}` or `{answer}` is not text")
        user = {"role": "user", "content": "\n\n".join(filter(None, (parts[0], parts[2])))}
        return Chat(messages=(user, {"role": "assistant", "content": parts[1]}))
    return None


def _messages(turns: list[Any], record: Mapping[str, Any]) -> Chat:
    if not turns:
        raise RecordError("the list of messages is empty")
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns, start=1))
    return Chat(messages=messages, tools=_tools(record.get("tools")))


def _message(turn: Any, number: int) -> Message:
    """Return one message with its content as text, from `role`/`content` or `from`/`value`."""
    if not isinstance(turn, Mapping):
        raise RecordError(f"message {number} is {_kind(turn)}, not an object")
    role, content = turn.get("role"), turn.get("content")
    if role is None:
        role, content = turn.get("from"), turn.get("value")
        role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str):
        raise RecordError(f"message {number} has no role")
    calls = _tool_calls(turn.get("tool_calls"))
    if content is None and not calls:
        raise RecordError(f"message {number} has neither content nor tool calls")
    message: Message = {"role": role, "content": _content(content, number)}
    message |= {"tool_calls": calls} if calls else {}
    # Templates print the name of the tool that answers, and some print the reasoning.
    names = ("name", "tool_call_id", "reasoning_content")
    return message | {name: turn[name] for name in names if isinstance(turn.get(name), str)}


def _content(content: Any, number: int) -> str:
    """Return a message's content as text: of a list of parts the texts, one per line."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part if isinstance(part, str) else _part_text(part) for part in content]
        return "\n".join(text for text in texts if text is not None)
    raise RecordError(f"the content of message {number} is {_kind(content)}, not text")


def _part_text(part: Any) -> str | None:
    """Return the text of a part; None for images and sounds, which no language model reads."""
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else None


def _tool_calls(calls: Any) -> list[Any]:
    """Return the tool calls with their arguments as objects, as chat templates expect them."""
    if not isinstance(calls, list):
        return []
    return [_tool_call(call) for call in calls if isinstance(call, Mapping)]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    arguments = _parsed(function.get("arguments"))
    return {**call, "function": {**function, "arguments": arguments}}


def _tools(tools: Any) -> tuple[Any, ...]:
    tools = _parsed(tools)
    return tuple(tools) if isinstance(tools, list) else ()


def _parsed(value: Any) -> Any:
    """Return the value of a JSON text, or the text itself if it is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _plain_content(message: Message) -> str:
    calls = message.get("tool_calls")
    text: str = message["content"]
    if not calls:
        return text
    try:
        dumped = json.dumps(calls, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise RecordError("its tool calls are nested too deeply") from error
    return f"{text}\n{dumped}" if text else dumped


def _kind(value: Any) -> str:
    kinds = {str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "another value")


def _names(record: Mapping[str, Any]) -> str:
    names = [str(name)[:40] for name in record]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"fields: {', '.join(names[:_MOST_NAMES]) or 'none'}{more}"
