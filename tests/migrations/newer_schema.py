"""Pytest plugin for the tests of the previous release: this tree migrates their database.

It replaces the function that the previous release's conftest imports. The environment names the
directories: NEW_TREE (this checkout) and PREVIOUS_TREE, and MIGRATE_LOG, a file for the output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import app.adapters.database.migrate

NEW_TREE = Path(os.environ["NEW_TREE"])
PREVIOUS_TREE = Path(os.environ["PREVIOUS_TREE"])

if not Path(app.adapters.database.migrate.__file__).is_relative_to(PREVIOUS_TREE):
    raise RuntimeError(f"the code under test is not that of {PREVIOUS_TREE}")


def upgrade(settings: Any, *_revision: str) -> None:
    """Run `intraslice migrate` of the new tree on the database of the tests."""
    database = {"INTRASLICE_DATABASE_URL": settings.database_url}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "migrate"],
        cwd=NEW_TREE,
        env={**os.environ, **database, "PYTHONPATH": str(NEW_TREE)},
        capture_output=True,
        text=True,
        check=False,
    )
    Path(os.environ["MIGRATE_LOG"]).write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)


app.adapters.database.migrate.upgrade = upgrade
