"""Forms of records and their rendering."""

from __future__ import annotations

import json
from typing import Any

import pytest

from intraslice_core.calibration import Reading, load_text
from intraslice_core.calibration.record_tally import RecordTally
from intraslice_core.calibration.records import Chat, RecordError, document_of
from intraslice_core.errors import CalibrationSourceError
from tests.intraslice_core.calibration.reading import load_documents
from tests.intraslice_core.tiny_models import tiny_tokenizer

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}({{ call.function.arguments.a }}"
    ")]{% endfor %}</s>{% endfor %}"
)


def plain(record: Any, field: str | None = None) -> str:
    document = document_of(record, field)
    return document if isinstance(document, str) else document.plain_text()


def turns(*contents: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("a", "a"),
        ({"text": "a", "messages": 3}, "a"),
        ({"text": None, "content": "a"}, "a"),
        ({"messages": turns("a", "b")}, "user: a\n\nassistant: b"),
        (
            {"messages": turns([{"type": "text", "text": "a"}, {"type": "image"}, "b"], "c")},
            "user: a\nb\n\nassistant: c",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "user: a\n\nassistant: b",
        ),
        ({"conversations": turns("a", "b")}, "user: a\n\nassistant: b"),
        ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 = 4"),
        ({"prompt": "Add.", "completion": "4"}, "Add.\n4"),
        (
            {"prompt": turns("a"), "completion": [{"role": "assistant", "content": "b"}]},
            "user: a\n\nassistant: b",
        ),
        ({"instruction": "a", "input": "b", "output": "c"}, "user: a\n\nb\n\nassistant: c"),
        ({"instruction": "a", "input": "", "output": "c"}, "user: a\n\nassistant: c"),
        ({"instruction": "a", "output": "c"}, "user: a\n\nassistant: c"),
        ({"question": "a", "answer": "b", "input": "x"}, "user: a\n\nassistant: b"),
    ],
)
def test_known_forms(record, expected):
    assert plain(record) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "not an object with fields but a number"),
        ({}, "none of its fields is known .fields: none"),
        ({"body": "a", "id": 1}, "fields: body, id"),
        ({"text": 3}, "`text` is a number"),
        ({"messages": "a"}, "`messages` is a string"),
        ({"messages": []}, "empty"),
        ({"messages": [3]}, "message 1 is a number"),
        ({"messages": [{"content": "a"}]}, "message 1 has no role"),
        ({"messages": [{"role": "user", "content": None}]}, "neither content nor tool calls"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of message 1 is a number"),
        ({"prompt": "a", "completion": []}, "neither texts nor lists"),
        ({"question": "a", "answer": ["b"]}, "`question` or `answer` is not text"),
        ({"text": "a\ud83d"}, r"lone surrogate \\ud83d"),
        ({"messages": turns("a\ud83d")}, "lone surrogate"),
        ({"messages": [{"role": "\ud83d", "content": "a"}]}, "lone surrogate"),
        ({"text": "a\0"}, "NUL"),
    ],
)
def test_unusable_records_are_described(record, message):
    with pytest.raises(RecordError, match=message):
        document_of(record, None)


def test_named_field_replaces_the_known_ones():
    assert plain({"text": "a", "body": "b"}, "body") == "b"
    assert plain({"body": turns("b")}, "body") == "user: b"
    with pytest.raises(RecordError, match=r"no field 'body' .fields: text"):
        document_of({"text": "a"}, "body")
    with pytest.raises(RecordError, match="`body` is null, not text or messages"):
        document_of({"body": None}, "body")


def test_tool_calls_have_their_arguments_as_objects():
    chat = document_of(
        {"messages": [*turns("1?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        None,
    )
    assert isinstance(chat, Chat)
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert chat.messages[1]["content"] == ""
    assert '"name": "add"' in chat.plain_text()


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_chats_are_written_by_the_chat_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            {"messages": [*turns("a"), call]},
            {"question": "b", "answer": "c"},
            {"messages": [{"role": "system", "content": "s"}, *turns("d")]},
            {"text": "e"},
        ],
    )
    tally = RecordTally(source="a.jsonl")
    reading = Reading(part="calibration", template=tokenizer)
    pieces = list(load_text(str(path), reading, tally))
    assert [(piece.text, piece.begins) for piece in pieces] == [
        ("<|user|>a</s><|assistant|>[add(1)]</s>", False),
        ("<|user|>b</s><|assistant|>c</s>", False),
        ("system: s\n\nuser: d", True),
        ("e", True),
    ]
    (warning,) = tally.warnings()
    assert "1 of 4 records were read as plain text" in warning
    assert "line 3: no system" in warning


def test_rare_bad_records_are_skipped_and_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n' + '{"text": "b"}\n' * 999)
    tally = RecordTally(source="a.jsonl")
    pieces = load_text(str(path), Reading(part="calibration"), tally)
    assert next(pieces).text == "a"
    assert next(pieces).text == "b"
    tally.settle(pieces)
    (warning,) = tally.warnings()
    assert warning == (
        "a.jsonl: 1 of 1000 records were skipped (line 2: `text` is a number, not text)"
    )


def test_more_bad_records_are_an_error_with_the_first(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n' + '{"text": "b"}\n' * 997)
    with pytest.raises(CalibrationSourceError, match=r"1 of the first 999 records.*line 2"):
        load_documents(path)
    path.write_text('{"body": "a"}\n' * 100_000)
    with pytest.raises(CalibrationSourceError, match=r"11 of the first 11.*line 3.*text_field"):
        load_documents(path)
