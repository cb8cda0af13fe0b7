"""The modules of CPython's standard library, and which of them calibration never sees."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

Part = Literal["calibration", "evaluation"]

_HELD_OUT = 8
"""One module of so many is for evaluation."""

_SHORT_PARAGRAPH = 40
"""Characters below which a paragraph is a phrase that any text may use."""

# Tests, data in the form of modules, what is not of CPython, and the topics of `pydoc`.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3"}
    | {"turtledemo", "ensurepip", "encodings", "pydoc_data", "__phello__"}
)


def library_modules(part: Part) -> list[str]:
    """Source of every module of a part.

    A digest of a module's name decides its part and its place: the order is the same everywhere,
    and neighbours have nothing to do with each other.
    """
    root = Path(sysconfig.get_path("stdlib"))
    digests = {
        hashlib.sha256(file.relative_to(root).as_posix().encode()).digest(): file
        for file in _files(root)
    }
    held_out = part == "evaluation"
    chosen = [digest for digest in sorted(digests) if (digest[0] % _HELD_OUT == 0) is held_out]
    return [digests[one].read_text(encoding="utf-8", errors="ignore") for one in chosen]


def _files(root: Path) -> Iterator[Path]:
    """Of the library; `site-packages` may be huge, so what is left out is not even entered."""
    for folder, folders, files in os.walk(root):
        # A build's own settings (`config-…`, `_sysconfigdata…`) differ between machines.
        folders[:] = [one for one in folders if one not in _LEFT_OUT and "config-" not in one]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def unique_paragraphs(texts: list[str], seen: set[str]) -> tuple[list[str], set[str]]:
    """The texts without paragraphs of `seen`, and `seen` with theirs."""
    seen = set(seen)
    kept_texts = []
    for text in texts:
        kept = []
        for paragraph in text.split("\n\n"):
            # Indentation differs where one text quotes another.
            key = " ".join(paragraph.split())
            if len(key) < _SHORT_PARAGRAPH or key not in seen:
                kept.append(paragraph)
            seen.add(key)
        kept_texts.append("\n\n".join(kept))
    return kept_texts, seen


_HELD_OUT_PAGES = 4
"""One topic of so many is for evaluation."""

# A parser would tell docstrings from other long strings, but takes five times as long.
_STRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_LONG_STRING = 200


def python_documentation(part: Part) -> list[str]:
    """The documents of one part.

    Documents quote each other, so a paragraph that the held-out part holds is cut from the
    calibration part, and a paragraph counts once within a part. What is held out as code counts
    too: the two may be mixed.
    """
    held_out, seen = unique_paragraphs(_part_topics("evaluation"), set())
    if part == "evaluation":
        return held_out
    _, seen = unique_paragraphs(library_modules("evaluation"), seen)
    return unique_paragraphs(_part_topics("calibration") + list(_docstrings()), seen)[0]


def _part_topics(part: Part) -> list[str]:
    """Texts of a part's topics; a digest of the name decides, so new topics move no old one."""
    wanted = part == "evaluation"
    return [topics[name] for name in sorted(topics) if _is_held_out(name) is wanted]


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT_PAGES == 0


def _docstrings() -> Iterator[str]:
    """The long docstrings of each module that is not held out as code, one document a module."""
    for source in library_modules("calibration"):
        strings = _STRING.findall(source)
        yield "\n\n".join(string for string in strings if len(string) >= _LONG_STRING)


_HELD_OUT_CHARACTERS = 6_000
"""Of a held-out module: evaluation reads from the front, and is to see more than the first one."""


def python_code(part: Part) -> list[str]:
    """The modules of one part, without paragraphs that a held-out part holds.

    The held-out documentation counts too: docstrings repeat it, and the two may be mixed.
    """
    held_out, seen = unique_paragraphs(library_modules("evaluation"), set())
    if part == "evaluation":
        return [_front(module) for module in held_out]
    _, seen = unique_paragraphs(python_documentation("evaluation"), seen)
    return unique_paragraphs(library_modules("calibration"), seen)[0]


def _front(module: str) -> str:
    """The first lines of a module."""
    return module[:_HELD_OUT_CHARACTERS].rpartition("\n")[0]
