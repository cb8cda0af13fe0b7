"""CPython's own documentation: text that every Python installation carries.

The help topics are split into a calibration and a held-out part; the standard library's docstrings
join the calibration part, because the topics alone are too short for its default size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pydoc_data.topics import topics

from intraslice_core.calibration.python_library import Part, library_modules, unique_paragraphs

_HELD_OUT = 4
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
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0


def _docstrings() -> Iterator[str]:
    """The long docstrings of each module that is not held out as code, one document a module."""
    for source in library_modules("calibration"):
        strings = _STRING.findall(source)
        yield "\n\n".join(string for string in strings if len(string) >= _LONG_STRING)
