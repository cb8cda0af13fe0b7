"""Citations in docstrings, comments and Markdown name files and sections that exist."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
METHOD = REPOSITORY / "docs" / "method.md"
# Directories that are generated or installed.
SKIPPED = {"__pycache__", "node_modules", "site", "build", "dist", "screenshots"}
HIDDEN_BUT_OURS = {".ci", ".github"}

OUTSIDE = {"config.toml"}
"""Bare file names that belong to the user's home: the client's configuration."""

_CITED = re.compile(r"(?<![\w*/~.<{$:…-])((?:[\w.-]+/)*[\w-]+\.(?:md|py|toml))\b(?![\w*/(])")
_NUMBERS = r"\d+[a-z]?(?:(?:,| and| to| or)\s*\d+[a-z]?)*"
_SECTIONS = (
    re.compile(rf"[Ss]ections?\s+({_NUMBERS})\s+of\s+`?docs/method\.md"),
    re.compile(rf"docs/method\.md`?,\s+sections?\s+({_NUMBERS})"),
)
_HEADING = re.compile(r"^#{2,3} (\d+[a-z]?)\. ", re.M)


def files(*suffixes: str) -> Iterator[Path]:
    """Yield the repository's own files with one of these suffixes."""
    for folder, folders, names in os.walk(REPOSITORY):
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name in HIDDEN_BUT_OURS)
        )
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(suffixes))


@cache
def file_names() -> frozenset[str]:
    """Return the names of all files that can be cited, without their directories."""
    return frozenset(path.name for path in files(".md", ".py", ".toml"))


@cache
def prose(path: Path) -> str:
    """Return a Markdown file, or the docstrings and comments of a Python file."""
    source = path.read_text("utf-8")
    if path.suffix == ".md":
        return source
    docstrings = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join([*docstrings, *comments])


def exists(cited: str, place: Path) -> bool:
    """Return whether a cited file exists: from the root or from the citing file's directory.

    A bare name may be that of any file of the repository.
    """
    if "/" in cited:
        return (REPOSITORY / cited).is_file() or (place.parent / cited).is_file()
    return cited in file_names() | OUTSIDE


def missing_files(text: str, place: Path) -> list[str]:
    """Return the cited files that do not exist."""
    without_links = re.sub(r"https?://\S+", "", text)
    return sorted({cited for cited in _CITED.findall(without_links) if not exists(cited, place)})


def sections() -> set[str]:
    """Return the section numbers of docs/method.md."""
    return set(_HEADING.findall(METHOD.read_text("utf-8")))


def missing_sections(text: str) -> list[str]:
    """Return the cited sections of docs/method.md that do not exist."""
    numbers = {
        number
        for pattern in _SECTIONS
        for citation in pattern.findall(" ".join(text.split()))
        for number in re.findall(r"\d+[a-z]?", citation)
    }
    return sorted(numbers - sections())


def test_every_cited_file_exists() -> None:
    missing = [
        f"{path.relative_to(REPOSITORY)} cites {', '.join(cited)}"
        for path in files(".md", ".py")
        if (cited := missing_files(prose(path), path))
    ]
    assert not missing, "cite files by path from the root:\n" + "\n".join(missing)


def test_every_cited_section_exists() -> None:
    missing = [
        f"{path.relative_to(REPOSITORY)} cites {', '.join(cited)}"
        for path in files(".md", ".py")
        if (cited := missing_sections(prose(path)))
    ]
    assert not missing, f"docs/method.md has sections {sorted(sections())}:\n" + "\n".join(missing)


def test_the_method_has_the_sections_that_docstrings_cite() -> None:
    assert {"1", "2", "3", "3a", "3b", "3c", "3d", "4", "5", "6", "7", "8"} <= sections()


def test_nothing_needs_a_file_outside_the_repository() -> None:
    suffixes = (".md", ".py", ".toml", ".yml", ".yaml", ".sh", "run", "Makefile", "Dockerfile")
    shared = "../" + "shared"
    assert [path for path in files(*suffixes) if shared in path.read_text("utf-8")] == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("as in `algorithm.md`", ["algorithm.md"]),
        ("see docs/no_such_page.md, and docs/method.md", ["docs/no_such_page.md"]),
        ("see https://example.com/README.txt/elsewhere.md", []),
        ("`intraslice_core/plan.py` and pyproject.toml", []),
        ("any `*.md`, `DIR/*.py`, `~/.config/intraslice/config.toml`", []),
    ],
)
def test_a_missing_file_is_noticed(text: str, missing: list[str]) -> None:
    assert missing_files(text, REPOSITORY / "README.md") == missing


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Least squares (section 5 of docs/method.md).", []),
        ("sections 3a and\n    3z of docs/method.md", ["3z"]),
        ("section 99 of `docs/method.md`", ["99"]),
        ("options of docs/method.md, sections 3 to 98", ["98"]),
        ("section 99 of another page", []),
    ],
)
def test_a_missing_section_is_noticed(text: str, missing: list[str]) -> None:
    assert missing_sections(text) == missing
