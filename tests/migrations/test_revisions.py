"""Revisions are consecutive numbers, so that every version can compare them with its own."""

from __future__ import annotations

import re
from pathlib import Path

from app.adapters.database.migrate import head_revision, migrations

VERSIONS = Path(__file__).parents[2] / "migrations" / "versions"


def test_files_are_numbered_consecutively_and_named() -> None:
    names = sorted(path.stem for path in VERSIONS.glob("*.py") if path.stem != "__init__")
    assert [name.partition("_")[0] for name in names] == [
        f"{number:04}" for number in range(1, len(names) + 1)
    ]
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+", name) for name in names)
    assert [migration.name for migration in migrations()] == names


def test_revisions_are_the_numbers_of_their_files_each_after_the_one_before() -> None:
    previous = None
    for path in sorted(VERSIONS.glob("[0-9]*.py")):
        source = path.read_text("utf-8")
        revision = path.stem[:4]
        assert f'\nrevision = "{revision}"\n' in source, path.name
        expected = "None" if previous is None else f'"{previous}"'
        assert f"\ndown_revision = {expected}\n" in source, path.name
        previous = revision
    assert head_revision() == previous


def test_every_migration_states_what_its_downgrade_drops() -> None:
    for migration in migrations():
        drops = migration.downgrade_drops
        assert drops is None or re.fullmatch(r"[a-z].*[^.]", drops), migration.name
