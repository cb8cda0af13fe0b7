"""Atomic writes and SHA-256 digests of files; imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_PREFIX = ".partial-"
"""Prefix of the directories that hold unfinished files; a killed process leaves them behind."""


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def combined_sha256(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the names and digests of several files, in order of their paths."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def atomic_file(destination: Path) -> Iterator[Path]:
    """Yield a path to write; it is renamed to `destination` if the block succeeds.

    The path lies in the same directory, which is created if needed, and does not exist yet.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=destination.parent))
    try:
        partial = folder / destination.name
        yield partial
        os.replace(partial, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
