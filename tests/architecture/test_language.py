"""The wording of the code, measured: see the section on language in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("app", "workers", "intraslice_core", "intraslice_client")
MEASURES = {Path(__file__).relative_to(REPOSITORY)}
"""Files that must spell the words they forbid."""

MAX_RIDDLES = 0.03
MAX_PASSIVE_NAMES = 20
RIDDLE = re.compile(r"(What|Of|Whether|Where|How|Who|Which|As|From)\b")
PASSIVE_NAME = re.compile(r"\b(found|kept|known|asked|told) = ")
LOOP_OVER_ONE = re.compile(r"\bfor one in\b")

RETIRED_NAMES = {
    r"rehears": "trial compression",
    r"(?i)knowledge": "sensitivity",
    r"learnt": "measured",
    r"(?i)worker_?roll": "worker registry",
    r"(?i)sweeper": "maintenance",
    r"LayerCheckpoints": "ResumeState",
    r"SharedFiles|SharedStatistics": "StatisticsCache, ModelStatistics",
    r"Block(Weights|Settings)\b": "LayerWeights, LayerSettings",
    r"ReaderLayers|dense_layers": "DenseLayerReader, dense_model",
    r"PricedPlan|LayerPrice": "ScoredPlan, LayerLosses",
    r"AttentionOffer|\bOFFERS\b": "AllocationCandidate",
    r"^_?refus(?!ed$)": "reject, error (`refused` is a persisted field)",
    r"blaming|tell_nobody": "attributed_to_recover, ignore_saved",
    r"(Job|Event|Artifact|Webhook|Upload|Sweep|Key)Out\b": "the domain model of that name",
}
"""Parts of identifiers that are no longer used, with what to write instead."""

RETIRED_PHRASES = {
    r"rehears": "trial compression",
    r"\bwalk(s|ed|ing)? over\b": "pass over",
    r"\bgone on with\b|\bgoes on with\b": "resume",
    r"\bbroken off\b": "interrupted",
    r"\bflatters?\b": "likely optimistic",
    r"\bbeside other work\b": "on a busy machine",
    r"\bhalf layers?\b": "module",
    r"\bworker roll\b": "worker registry",
    r"\bhand over fist\b|\bfor sale\b": "prunable",
    r"\bhears? of\b|\bis told of\b": "is called with, is notified of",
    r"\bnobody wants\b": "no-op",
}
"""Phrases of the former private language in prose, with what to write instead."""


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    files = [Path(name) for name in listed if not folders or name.startswith(folders)]
    return tuple(REPOSITORY / file for file in files if file not in MEASURES)


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string that documents a definition."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def comments(file: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        _, hash_sign, comment = line.partition("# ")
        if hash_sign:
            yield number, comment


def identifiers(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        for field in ("name", "id", "attr", "arg"):
            name = getattr(node, field, None)
            if isinstance(name, str) and hasattr(node, "lineno"):
                yield node.lineno, name


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(REPOSITORY)}:{line}"


def listed(places: list[str]) -> str:
    return "\n  ".join(["", *places[:40], *(["…"] if len(places) > 40 else [])])


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    packages = tuple(f"{name}/" for name in PACKAGES)
    blocks = [
        (place(file, line), text)
        for file in python_files(*packages)
        for line, text in docstrings(file)
    ]
    riddles = [f"{where} {text.splitlines()[0]}" for where, text in blocks if RIDDLE.match(text)]
    assert len(riddles) < MAX_RIDDLES * len(blocks), (
        'Begin the docstring of a function with a verb phrase ("Return …", "Raise if …"), that of '
        "a class, constant or field with a noun phrase; not with What, Of, Whether, Where, How, "
        f"Who, Which, As or From. {len(riddles)} of {len(blocks)} do:{listed(riddles)}"
    )


def test_loop_variables_name_their_element() -> None:
    places = [
        place(file, number)
        for file in python_files()
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)
        if LOOP_OVER_ONE.search(line)
    ]
    assert not places, (
        f"Name the element: `for layer in layers`, not `for one in layers`:{listed(places)}"
    )


def test_variables_are_named_for_the_thing() -> None:
    places = [
        place(file, number)
        for file in python_files()
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)
        if PASSIVE_NAME.search(line)
    ]
    assert len(places) < MAX_PASSIVE_NAMES, (
        "A variable is named for the thing (`losses`, `report`), not for what happened to it "
        f"(found, kept, known, asked, told). {len(places)} are:{listed(places)}"
    )


@cache
def names(file: Path) -> tuple[tuple[int, str], ...]:
    """Return the line and text of every identifier; a parsed file serves all patterns."""
    return tuple(identifiers(file))


@cache
def prose(file: Path) -> tuple[tuple[int, str], ...]:
    """Return the line and text of every docstring and comment."""
    return (*docstrings(file), *comments(file))


@pytest.mark.parametrize("retired", RETIRED_NAMES)
def test_retired_names_stay_retired(retired: str) -> None:
    pattern = re.compile(retired)
    places = sorted(
        {
            f"{place(file, line)} {name}"
            for file in python_files()
            for line, name in names(file)
            if pattern.search(name)
        }
    )
    assert not places, f"Write {RETIRED_NAMES[retired]} instead:{listed(places)}"


@pytest.mark.parametrize("retired", RETIRED_PHRASES)
def test_retired_phrases_stay_retired(retired: str) -> None:
    pattern = re.compile(retired, re.IGNORECASE)
    places = [
        f"{place(file, line)} {text.strip().splitlines()[0][:80] if text.strip() else ''}"
        for file in python_files()
        for line, text in prose(file)
        if pattern.search(text)
    ]
    assert not places, f"Write {RETIRED_PHRASES[retired]!r} instead:{listed(places)}"


def test_a_riddle_is_noticed() -> None:
    assert RIDDLE.match("What of the attention is for sale, and how dear.")
    assert RIDDLE.match("Of every choice.")
    assert not RIDDLE.match("Whatever")
    assert not RIDDLE.match("Return the random seed.")
