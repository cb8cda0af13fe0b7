"""Older revisions of the project, checked out beside this one, and processes that import them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check a revision out into a temporary worktree and yield its path."""
    with tempfile.TemporaryDirectory(prefix="intraslice-before-") as directory:
        tree = Path(directory) / "tree"
        git = ("git", "-C", str(REPOSITORY), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def environment_of(tree: Path, *further: Path) -> dict[str, str]:
    """Return the environment of a process that imports one tree and caches its bytecode.

    Args:
        tree: root of the project.
        further: directories to import from after it.
    """
    ignored = ("INTRASLICE_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    variables = {name: os.environ[name] for name in os.environ if not name.startswith(ignored)}
    return variables | {"PYTHONPATH": os.pathsep.join(map(str, (tree, *further)))}
