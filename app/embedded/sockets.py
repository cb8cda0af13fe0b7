"""Directories for unix sockets: private, with paths within the kernel's limit of 107 bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from app.embedded.process import EmbeddedError, Owner

_LONGEST_SOCKET_PATH = 107
_LONGEST_NAME = len("/.s.PGSQL.5432.lock")


def make_socket_directory(server_directory: Path, owner: Owner | None = None) -> Path:
    """Create and return the server's 0700 socket directory; the same one at every start.

    A fixed path lets the next run reuse what a killed run left. The caller holds the server's
    lock, so any content is stale.

    Raises:
        EmbeddedError: if no temporary directory has a path short enough.
    """
    uid = owner.uid if owner else os.geteuid()
    key = hashlib.sha256(f"{uid}:{server_directory.resolve()}".encode()).hexdigest()[:16]
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        candidate = Path(parent) / f"intraslice-{key}"
        fits = len(os.fsencode(candidate)) + _LONGEST_NAME <= _LONGEST_SOCKET_PATH
        if fits and is_reachable(Path(parent), uid) and _claim(candidate, uid, owner):
            return candidate
    raise EmbeddedError(
        f"no temporary directory has a path short enough for a unix socket ({_LONGEST_SOCKET_PATH}"
        " bytes); set TMPDIR to a shorter path"
    )


def _claim(candidate: Path, uid: int, owner: Owner | None) -> bool:
    """Create an empty directory; return False if something of another user occupies the path."""
    if os.path.lexists(candidate):
        status = candidate.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (uid, os.geteuid()):
            return False
        shutil.rmtree(candidate)
    try:
        candidate.mkdir(mode=0o700)
    except FileExistsError:
        return False
    if owner is not None:
        os.chown(candidate, owner.uid, owner.gid)
    return True


def is_reachable(directory: Path, uid: int) -> bool:
    """Return True if the user may enter the directory, judging by the mode of all its parents."""
    if uid == os.geteuid():
        return os.access(directory, os.X_OK)
    for path in (directory, *directory.resolve().parents):
        status = path.stat()
        bit = stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True
