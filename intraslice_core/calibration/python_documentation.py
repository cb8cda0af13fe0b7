"""CPython's own documentation: text that every Python installation carries.

The help topics are split into a calibration and a held-out part; the standard library's docstrings
join the calibration part, because the topics alone are too short for its default size.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

_HELD_OUT = 4
"""One topic of so many is for evaluation."""

_SHORT_PARAGRAPH = 40
"""Characters below which a paragraph is a phrase that any topic may use."""

# A parser would tell docstrings from other long strings, but takes five times as long.
_STRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_LONG_STRING = 200
_NOT_DOCUMENTATION = frozenset(
    {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings"}
    | {"pydoc_data"}
)


def python_documentation(part: Literal["calibration", "evaluation"]) -> list[str]:
    """The documents of one part, in alphabetical order.

    Documents quote each other, so a paragraph that the held-out part holds is cut from the
    calibration part, and a paragraph counts once within a part.
    """
    held_out, seen = _unique(_part_topics("evaluation"), set())
    if part == "evaluation":
        return held_out
    return _unique(_part_topics("calibration") + list(_docstrings()), seen)[0]


def _part_topics(part: str) -> list[str]:
    """Texts of a part's topics; a digest of the name decides, so new topics move no old one."""
    wanted = part == "evaluation"
    return [topics[name] for name in sorted(topics) if _is_held_out(name) is wanted]


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0


def _docstrings() -> Iterator[str]:
    """The long docstrings of each module of the standard library, one document a module."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if _NOT_DOCUMENTATION.isdisjoint(file.relative_to(root).parts[:-1]):
            source = file.read_text(encoding="utf-8", errors="ignore")
            strings = _STRING.findall(source)
            yield "\n\n".join(string for string in strings if len(string) >= _LONG_STRING)


def _unique(texts: list[str], seen: set[str]) -> tuple[list[str], set[str]]:
    """The texts without paragraphs of `seen`, and `seen` with theirs."""
    seen = set(seen)
    kept_texts = []
    for text in texts:
        kept = []
        for paragraph in text.split("\n\n"):
            # Indentation differs where one topic quotes another.
            key = " ".join(paragraph.split())
            if len(key) < _SHORT_PARAGRAPH or key not in seen:
                kept.append(paragraph)
            seen.add(key)
        kept_texts.append("\n\n".join(kept))
    return kept_texts, seen
