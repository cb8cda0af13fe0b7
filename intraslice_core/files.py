"""Atomic writes, checks of paths to write to, and SHA-256 digests of files; imports no torch."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from intraslice_core.errors import (
    InsufficientDiskError,
    OutputExistsError,
    OutputNotWritableError,
)
from intraslice_core.scratch import scratch_directory
from intraslice_core.substeps import report_substep

PARTIAL_PREFIX = ".partial-"
"""Prefix of the directories that hold unfinished files.

A killed process leaves them behind, and the next write beside them removes them.
"""
_HASHED_BYTES = 2**24
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_POINTER_BYTES = 1024
"""Size limit of a pointer in the git-lfs specification."""
_QUOTED_CHARACTERS = 200
"""Largest number of characters of a path that an error quotes."""


def is_lfs_pointer(file: Path) -> bool:
    """Return True if a file is a git-lfs pointer, which `git clone` leaves without git-lfs."""
    if not file.is_file() or file.stat().st_size > _MOST_POINTER_BYTES:
        return False
    with file.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    digest, name = hashlib.sha256(), file.name
    with file.open("rb") as stream:
        while chunk := stream.read(_HASHED_BYTES):
            digest.update(chunk)
            report_substep(f"reading {name}")
    return digest.hexdigest()


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
    with scratch_directory(PARTIAL_PREFIX, destination.parent) as scratch:
        partial = scratch.directory / destination.name
        yield partial
        os.replace(partial, destination)


# -- checks of paths before work -----------------------------------------------------------------


def require_writable_directory(directory: Path | None, option: str) -> None:
    """Raise unless files can be written to a directory that exists or can be created.

    A temporary directory is created and removed again, because permission bits and mount options
    do not show everything (root, `/proc`, quotas, security modules).

    Args:
        directory: the directory; None, for an option that was not given, passes.
        option: name of the option or argument, for the error.

    Raises:
        OutputNotWritableError: naming option, path and reason.
        InsufficientDiskError: if the file system is full.
    """
    if directory is None:
        return
    with _naming(option, directory):
        _require_room_below(_existing_ancestor(directory), directory, option)


def require_writable_file(file: Path | None, option: str) -> None:
    """Raise unless a file can be written, or created with its directory.

    Args:
        file: the file; None, for an option that was not given, passes.
        option: name of the option or argument, for the error.

    Raises:
        OutputNotWritableError: naming option, path and reason.
        InsufficientDiskError: if the file system is full.
    """
    if file is None:
        return
    with _naming(option, file):
        ancestor = _existing_ancestor(file)
        if ancestor != file.absolute():
            _require_room_below(ancestor, file, option)
        elif file.is_dir():
            raise _not_writable(file, option, "it is a directory", "name a file in it")
        else:
            with file.open("ab"):
                pass


def require_free_output(out: Path, option: str = "out") -> None:
    """Raise unless an output directory can be created; an empty one is allowed and replaced.

    Args:
        out: the output directory.
        option: name of the option or argument, for the error.

    Raises:
        OutputExistsError: if `out` is a file or a directory that is not empty.
        OutputNotWritableError: if it cannot be created or replaced.
        InsufficientDiskError: if the file system is full.
    """
    with _naming(option, out):
        if not _exists(out):
            require_writable_directory(out, option)
            return
        if not out.is_dir() or any(out.iterdir()):
            raise OutputExistsError(
                f"{out} already exists", field=option, hint="give another directory or remove it"
            )
        if out.is_mount():
            raise _not_writable(
                out, option, "it is a mount point", f"give a directory in it, such as {out}/model"
            )
        require_writable_directory(out.resolve().parent, option)


def _require_room_below(ancestor: Path, path: Path, option: str) -> None:
    """Raise unless `path` can be created below its nearest existing ancestor."""
    if not ancestor.is_dir():
        reason = "it is a file" if ancestor == path.absolute() else f"{ancestor} is a file"
        raise _not_writable(path, option, reason, "name a path that does not lead through a file")
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=ancestor):
        pass


@contextmanager
def _naming(option: str, path: Path) -> Iterator[None]:
    """Convert an error of the operating system into one that names the option and the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDiskError(
                f"{path} cannot be written: {reason}",
                field=option,
                hint="free some space or name a path on another disk",
            ) from error
        raise _not_writable(path, option, reason, "name a path that can be written to") from error


def _not_writable(path: Path, option: str, reason: str, hint: str) -> OutputNotWritableError:
    quoted = str(path)
    if len(quoted) > _QUOTED_CHARACTERS:
        quoted = f"{quoted[:_QUOTED_CHARACTERS]}…"
    return OutputNotWritableError(f"{quoted} cannot be written: {reason}", field=option, hint=hint)


def _existing_ancestor(path: Path) -> Path:
    """Return the path if it exists, else the nearest existing path above it.

    Raises:
        OSError: if a name is too long, a symbolic link leads nowhere, or a directory may not be
            searched.
    """
    path = path.absolute()
    missing = []
    while not _exists(path):
        if path.is_symlink():
            raise FileNotFoundError(
                errno.ENOENT, f"{path} is a symbolic link to {path.readlink()}, which is missing"
            )
        missing.append(path.name)
        path = path.parent
    for name in missing if path.is_dir() else ():
        _exists(path / name)  # raises if the name is too long for the file system
    return path


def _exists(path: Path) -> bool:
    """Report whether a path exists; other errors than its absence are raised, as of any Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
