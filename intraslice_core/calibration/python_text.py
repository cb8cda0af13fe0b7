"""Text of the installed Python: modules of the standard library and its documentation.

A part is read once in a process: its few megabytes are kept, and reading takes a tenth of a second.
Both sources, `pycode` and `pydoc`, are divided into a calibration and a held-out evaluation part
without common paragraphs. Sections: the division of the library's modules, documentation, code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

Part = Literal["calibration", "evaluation"]

"""Part of a source: for calibration, or held out for evaluation."""

# -- division of the library's modules ----------------------------------------------------------

_HELD_OUT = 8
"""Number of modules per held-out one, which is for evaluation only."""

_SHORT_PARAGRAPH = 40
"""Length in characters below which a paragraph is a phrase that any text may contain."""

# Tests, data in the form of modules, packages that are not part of CPython, and pydoc's topics.
_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3"}
    | {"turtledemo", "ensurepip", "encodings", "pydoc_data", "__phello__"}
)


def library_modules(part: Part) -> list[str]:
    """Return the source code of every module of a part.

    A digest of the module's name determines its part and its position, so the order is the same on
    every machine and neighbours are unrelated.
    """
    digests = _by_digest(Path(sysconfig.get_path("stdlib")))
    held_out = part == "evaluation"
    selected = [digest for digest in sorted(digests) if (digest[0] % _HELD_OUT == 0) is held_out]
    return [digests[digest].read_text(encoding="utf-8", errors="ignore") for digest in selected]


@functools.cache
def _by_digest(root: Path) -> Mapping[bytes, Path]:
    """Return the library's modules by the digest of their names."""
    return {
        hashlib.sha256(file.relative_to(root).as_posix().encode()).digest(): file
        for file in _files(root)
    }


def _files(root: Path) -> Iterator[Path]:
    """Yield the library's modules; excluded folders, which may be huge, are not entered."""
    for folder, folders, files in os.walk(root):
        # Build settings (`config-…`, `_sysconfigdata…`) differ between machines.
        folders[:] = [name for name in folders if name not in _EXCLUDED and "config-" not in name]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def unique_paragraphs(texts: Iterable[str], seen: set[str]) -> tuple[list[str], set[str]]:
    """Return the texts without the paragraphs in `seen`, and `seen` with their paragraphs added."""
    seen = set(seen)
    unique_texts = []
    for text in texts:
        paragraphs = []
        for paragraph in text.split("\n\n"):
            # Indentation may differ where one text quotes another.
            key = " ".join(paragraph.split())
            if len(key) < _SHORT_PARAGRAPH or key not in seen:
                paragraphs.append(paragraph)
            seen.add(key)
        unique_texts.append("\n\n".join(paragraphs))
    return unique_texts, seen


# -- documentation -------------------------------------------------------------------------------

_HELD_OUT_TOPICS = 4
"""Number of topics per held-out one, which is for evaluation only."""

# A parser would distinguish docstrings from other long strings, but takes five times as long.
_STRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_LONG_STRING = 200
"""Shortest docstring, in characters, that counts as documentation."""


@functools.cache
def python_documentation(part: Part) -> tuple[str, ...]:
    """Return the documents of a part.

    Documents quote each other, so paragraphs of the held-out part are removed from the calibration
    part, and repeated paragraphs are removed within a part. Paragraphs of the held-out code are
    removed too, because the two sources may be mixed.
    """
    held_out, seen = unique_paragraphs(_part_topics("evaluation"), set())
    if part == "evaluation":
        return tuple(held_out)
    _, seen = unique_paragraphs(library_modules("evaluation"), seen)
    documents, _ = unique_paragraphs([*_part_topics("calibration"), *_docstrings()], seen)
    return tuple(documents)


def _part_topics(part: Part) -> list[str]:
    """Return the topics of a part.

    A digest of each name determines its part, so new topics do not move old ones.
    """
    held_out = part == "evaluation"
    return [topics[name] for name in sorted(topics) if _is_held_out(name) is held_out]


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT_TOPICS == 0


def _docstrings() -> Iterator[str]:
    """Yield the long docstrings of each calibration module, one document per module."""
    for source in library_modules("calibration"):
        strings = _STRING.findall(source)
        yield "\n\n".join(string for string in strings if len(string) >= _LONG_STRING)


# -- code ----------------------------------------------------------------------------------------

_HELD_OUT_CHARACTERS = 6_000
"""Length of a held-out module: evaluation reads from the front and should cover several modules."""


@functools.cache
def python_code(part: Part) -> tuple[str, ...]:
    """Return the modules of a part, without paragraphs of the held-out part.

    Paragraphs of the held-out documentation are removed too: docstrings repeat it, and the two
    sources may be mixed.
    """
    held_out, seen = unique_paragraphs(library_modules("evaluation"), set())
    if part == "evaluation":
        return tuple(_front(module) for module in held_out)
    _, seen = unique_paragraphs(python_documentation("evaluation"), seen)
    return tuple(unique_paragraphs(library_modules("calibration"), seen)[0])


def _front(module: str) -> str:
    """Return the first lines of a module."""
    return module[:_HELD_OUT_CHARACTERS].rpartition("\n")[0]
