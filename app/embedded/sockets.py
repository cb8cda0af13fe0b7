"""Directories for unix sockets: private, and short enough for the kernel's 107 bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from app.embedded.errors import EmbeddedError
from app.embedded.process import Owner

_LONGEST_SOCKET_PATH = 107
_LONGEST_NAME = len("/.s.PGSQL.5432.lock")


def make_socket_directory(server_directory: Path, owner: Owner | None = None) -> Path:
    """A 0700 directory of the server's user, the same one at every start of this server.

    Always the same, so that a killed run leaves nothing that the next one does not reuse; the
    caller holds the server's lock, so whatever lies there is stale.
    """
    uid = owner.uid if owner else os.geteuid()
    key = hashlib.sha256(f"{uid}:{server_directory.resolve()}".encode()).hexdigest()[:16]
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        candidate = Path(parent) / f"intraslice-{key}"
        if len(os.fsencode(candidate)) + _LONGEST_NAME > _LONGEST_SOCKET_PATH:
            continue
        if not is_reachable(Path(parent), uid):
            continue
        if _claim(candidate, uid, owner):
            return candidate
    raise EmbeddedError("no temporary directory has a path short enough for a unix socket")


def _claim(candidate: Path, uid: int, owner: Owner | None) -> bool:
    """Make it ours, or say that somebody else has planted something there."""
    if os.path.lexists(candidate):
        found = candidate.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
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
    """Whether this user may enter the directory, by the permission bits of all its parents."""
    if uid == os.geteuid():
        return os.access(directory, os.X_OK)
    for place in (directory, *directory.resolve().parents):
        entry = place.stat()
        bit = stat.S_IXUSR if entry.st_uid == uid else stat.S_IXOTH
        if not entry.st_mode & bit:
            return False
    return True
