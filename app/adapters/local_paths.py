"""Access check for files of this machine that a job names, and listing of those it may name."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from app.domain.errors import NotFoundError, ServiceError
from app.domain.server_path import PathEntry, PathUse
from intraslice_core.text_sources import text_format

MOST_SCANNED = 100_000
"""Largest number of names in a directory that is listed."""
_MOST_FILES = 10_000
_CONFIG = "config.json"
_GGUF = ".gguf"
_Contents = Literal["model", "dataset"]


class PathRejectedError(ServiceError):
    """The path is not below a directory of INTRASLICE_MODEL_ROOTS or INTRASLICE_DATA_ROOTS."""

    code = "path_not_allowed"


def resolve_below(path: str, roots: tuple[Path, ...]) -> Path:
    """Return the real path of `path`, links followed; a directory's entries are checked too.

    Raises:
        PathRejectedError: if the place, or what a link in the directory leads to, is elsewhere.
        NotFoundError: if nothing is there.
    """
    real_roots = _real(roots)
    if not Path(path).is_absolute():
        raise PathRejectedError("The path is not absolute")
    try:
        real = _resolved_below(Path(path), real_roots)
        if not real.exists():
            raise NotFoundError(f"{path} does not exist")
        if real.is_dir():
            _check_entries(real, real_roots)
    except (OSError, RuntimeError, ValueError) as error:  # link loops, names too long
        raise PathRejectedError("The path cannot be resolved") from error
    return real


class DirectoryBrowser:
    """Directories below some roots, listed one level and one page at a time.

    Nothing outside of the roots and nothing hidden is listed, whatever links lead to it.

    Args:
        roots: directories below which jobs may name files.
        use: what the files are for.
    """

    def __init__(self, roots: tuple[Path, ...], use: PathUse) -> None:
        self._roots = _real(roots)
        self._use = use

    def list_roots(self) -> list[PathEntry]:
        """Return the roots that are directories here; their names are their paths."""
        entries = (self._described(root, str(root)) for root in self._roots)
        return [entry for entry in entries if entry is not None]

    def open(self, path: str) -> Path:
        """Return the real path of a directory.

        Raises:
            PathRejectedError: if it is not visible below a root.
            NotFoundError: if there is no such directory.
        """
        if not Path(path).is_absolute():
            raise PathRejectedError("The path is not absolute")
        try:
            real = self._visible(Path(path))
            if not real.is_dir():
                raise NotFoundError(f"{path} is not a directory of this server")
        except (OSError, RuntimeError, ValueError) as error:
            raise PathRejectedError("The path cannot be resolved") from error
        return real

    def parent(self, directory: Path) -> Path | None:
        """Return the directory above; None for a root."""
        above = directory.parent
        if directory in self._roots or not any(map(above.is_relative_to, self._roots)):
            return None
        return above

    def page(self, directory: Path, after: str | None, limit: int) -> tuple[list[str], bool]:
        """Return the next names of a directory, and whether there are more.

        Only names that may be of interest are compared: files and links are looked at later, once
        they are on the page.

        Raises:
            PathRejectedError: if the directory cannot be read, or holds too many names.
        """
        try:
            with os.scandir(directory) as entries:
                names = heapq.nsmallest(limit + 1, self._candidates(entries, after or ""))
        except OSError as error:
            raise PathRejectedError("The directory cannot be read") from error
        return names[:limit], len(names) > limit

    def entries(self, directory: Path, names: list[str]) -> list[PathEntry]:
        """Return the directories and usable files among the names."""
        entries = (self._described(directory / name, name) for name in names)
        return [entry for entry in entries if entry is not None]

    def _candidates(self, entries: Iterator[os.DirEntry[str]], after: str) -> Iterator[str]:
        for number, entry in enumerate(entries):
            if number >= MOST_SCANNED:
                raise PathRejectedError(f"The directory holds more than {MOST_SCANNED} files")
            name = entry.name
            if name <= after or name.startswith(".") or not _is_unicode(name):
                continue
            # The type comes with the name here, without a look at the file.
            folder = entry.is_dir(follow_symlinks=False) or entry.is_symlink()
            if folder or self._contents_of_file(name) is not None:
                yield name

    def _described(self, path: Path, name: str) -> PathEntry | None:
        """Return the entry of a path; None if it is not visible, or of no use."""
        try:
            real = self._visible(path)
            if real.is_dir():
                is_model = self._is_model(real)
                return _entry(name, path, "directory", "model" if is_model else None, None)
            contents = self._contents_of_file(name)
            if contents is None or not real.is_file():
                return None
            return _entry(name, path, "file", contents, real.stat().st_size)
        except (PathRejectedError, OSError, RuntimeError):
            return None

    def _contents_of_file(self, name: str) -> _Contents | None:
        if self._use is PathUse.MODEL:
            return "model" if name.lower().endswith(_GGUF) else None
        return "dataset" if text_format(name) is not None else None

    def _is_model(self, directory: Path) -> bool:
        if self._use is not PathUse.MODEL:
            return False
        try:
            return self._visible(directory / _CONFIG).is_file()
        except PathRejectedError:
            return False

    def _visible(self, path: Path) -> Path:
        """Return the real path, if a root has it without a hidden part between.

        Raises:
            PathRejectedError: if not.
        """
        real = _resolved_below(path, self._roots)
        for root in self._roots:
            if real.is_relative_to(root):
                parts = real.relative_to(root).parts
                if not any(part.startswith(".") for part in parts):
                    return real
        raise PathRejectedError


def _entry(
    name: str,
    path: Path,
    kind: Literal["directory", "file"],
    contents: _Contents | None,
    size: int | None,
) -> PathEntry:
    return PathEntry(name=name, path=str(path), type=kind, contents=contents, bytes=size)


def _is_unicode(name: str) -> bool:
    """Return whether JSON can hold the name; undecodable bytes are lone surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _real(roots: tuple[Path, ...]) -> list[Path]:
    return [root.expanduser().resolve() for root in roots]


def _check_entries(directory: Path, real_roots: list[Path]) -> None:
    entries = list(islice(directory.rglob("*"), _MOST_FILES + 1))
    if len(entries) > _MOST_FILES:
        raise PathRejectedError(f"The directory holds more than {_MOST_FILES} files")
    for entry in entries:
        if entry.is_symlink():
            _resolved_below(entry, real_roots)


def _resolved_below(path: Path, real_roots: list[Path]) -> Path:
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in real_roots):
        raise PathRejectedError
    return real
