"""Redaction of texts that leave a machine: secrets and directories in any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.telemetry.redaction import HIDDEN, Redaction

SECRETS = ("hunter-two", "hunter", "s/l/a/s/h")
DIRECTORIES = (Path("/srv/our models"), Path("/home/someone"), Path("/"))
redact = Redaction(SECRETS, DIRECTORIES)

# Directories of hexadecimal digits cannot occur in the words around them.
NAMES = st.text("0123456789abcdef", min_size=8, max_size=12)
PATHS = st.lists(NAMES, min_size=2, max_size=5)
WORDS = st.text("ghijkl ()=,;:'\"", max_size=12)


@given(WORDS, PATHS, st.sampled_from(["", "//", "file:///", "sqlite:///", "~", "~u"]), WORDS)
@example("", ["0" * 8, "1" * 8], "", "")
def test_no_directory_of_an_absolute_path_is_left(
    before: str, names: list[str], start: str, after: str
) -> None:
    path = start.removesuffix("/") + "/" + "/".join(names)
    text = redact(f"{before} {path} {after}")
    for directory in names[:-1]:
        assert directory in names[-1] or directory not in text
    assert names[-1] in text


@given(WORDS, st.sampled_from(SECRETS), WORDS)
def test_no_given_secret_is_left(before: str, secret: str, after: str) -> None:
    text = redact(f"{before}{secret}{after}")
    assert not any(known in text for known in SECRETS)
    assert HIDDEN in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('File "/opt/x/lib/engine.py", line 3', 'File "…/engine.py", line 3'),
        ("No such file: '/data/a b/c d'", "No such file: '…/c d'"),
        ("read /srv/our models/llama/config.json", "read …/llama/config.json"),
        ("/home/someone/.cache and /home/someone-else/x", "…/.cache and …/x"),
        ("paths=/a/b:/c/d", "paths=…/b:…/d"),
        ("key isk_0123456789abcdef was used", f"key {HIDDEN} was used"),
        ("hf_AbCdEfGhIjKl", HIDDEN),
        ("Authorization: Bearer abc.def-ghi", f"Authorization: Bearer {HIDDEN}"),
        ("redis://:pass@host:6379/0", f"redis://{HIDDEN}@host:6379/0"),
        ("https://b/k?X-Amz-Signature=ab12&x=1", f"https://b/k?X-Amz-Signature={HIDDEN}&x=1"),
        ("password=abc, next", f"password={HIDDEN}, next"),
    ],
)
def test_secrets_and_paths_are_replaced(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "layer 3/30: 5 tok/s, error 0.01",
        "hub:meta-llama/Llama-3.2-1B at https://huggingface.co/meta-llama",
        "<s>a</s> and/or 1 / 2",
        "tokens: 64 x 256, relative ./x/y",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) == text
