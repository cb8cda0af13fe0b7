"""The standard library's source: code that every Python installation carries."""

from __future__ import annotations

from intraslice_core.calibration.python_documentation import python_documentation
from intraslice_core.calibration.python_library import Part, library_modules, unique_paragraphs

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
