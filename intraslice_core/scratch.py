"""Scratch directories that a killed process leaves behind and the next run recognises as ours.

Every scratch directory holds a marker file, which its process keeps locked. The kernel releases the
lock when the process ends, also by SIGKILL. A directory whose marker can be locked was therefore
left behind, and the next run in the same place removes it. Nothing else is ever removed: a
directory needs a valid marker of the same user, written by a process of this machine, because locks
need not be visible to other machines.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intraslice_core.errors import OutputInUseError, OutputNotWritableError

MARKER = "intraslice-scratch.json"
"""File that shows that a directory is ours, and whose lock shows that its process runs."""
_PROGRAM = "intraslice"
_NAME_CHARACTERS = 50
"""Characters of an output's name in that of its staging directory; names are at most 255 bytes."""
_MARKER_BYTES = 4096
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.02
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A scratch directory of this process, and those of earlier processes beside it."""

    directory: Path
    removed: tuple[Path, ...]
    """Directories that ended processes had left behind and that were removed."""
    foreign: tuple[Path, ...]
    """Directories of the same output from another machine, whose processes may still run."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a warning for every other directory."""
        return (
            *(f"removed {path}, which an interrupted run had left behind" for path in self.removed),
            *(
                f"{path} is of a run on another machine; remove it if that run has ended"
                for path in self.foreign
            ),
        )


@contextmanager
def staging_directory(out: Path) -> Iterator[Scratch]:
    """Yield a directory beside `out` for files that are renamed to `out` at the end.

    Args:
        out: the output; the directory above it is created if needed.

    Raises:
        OutputInUseError: if another running process stages files for the same output.
    """
    out = out.resolve()  # a link to an empty directory may lead to another file system
    parent = out.parent
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name[:_NAME_CHARACTERS]}.staging-"
    with scratch_directory(prefix, parent, output=out.name) as scratch:
        yield scratch


@contextmanager
def scratch_directory(
    prefix: str, parent: Path | None = None, *, output: str | None = None
) -> Iterator[Scratch]:
    """Yield a new directory, which is removed at the end, and remove those left behind before.

    Args:
        prefix: of the directory's name; only directories with this prefix are examined.
        parent: directory above it; None takes the one for temporary files.
        output: name of the output that only one process may write at a time; None allows several
            processes.

    Raises:
        OutputInUseError: if a running process holds a directory of the same output.
        OutputNotWritableError: if there is no directory for temporary files.
    """
    place = _temporary_place() if parent is None else parent
    # Locked, so that of two processes that start at once the second sees the first.
    with nullcontext() if output is None else _locked_parent(place):
        removed, foreign = _remove_left_behind(place, prefix, output)
        directory, descriptor = _create(place, prefix, output)
    try:
        yield Scratch(directory=directory, removed=removed, foreign=foreign)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def held_directory(directory: Path, output: Path) -> Iterator[None]:
    """Hold a lasting directory, so that no other process uses it at the same time.

    Args:
        directory: created if needed, with a marker; it is not removed.
        output: the output that the error names.

    Raises:
        OutputInUseError: if another running process holds it.
    """
    marker = directory / MARKER
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if not _try_lock(descriptor):
                raise _in_use(_read_facts(descriptor) or {}, output)
            if _is_same_file(marker, descriptor):  # else its holder has just removed it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_facts(output.name)).encode(), 0)
                yield
                return
        finally:
            os.close(descriptor)


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputNotWritableError(
            error.strerror or str(error),
            field="TMPDIR",
            hint="set TMPDIR to a directory that this user may write to",
        ) from error


def _create(place: Path, prefix: str, output: str | None) -> tuple[Path, int]:
    """Create a directory with a locked marker; return it and the descriptor of the lock.

    The marker gets its content only under the lock, so a marker with content was locked.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        descriptor = os.open(directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except BaseException:
        directory.rmdir()
        raise
    with suppress(OSError):  # the file system has no locks or is full: nobody will remove it
        if _try_lock(descriptor):
            os.write(descriptor, json.dumps(_facts(output)).encode())
    return directory, descriptor


def _facts(output: str | None) -> dict[str, Any]:
    """Return the content of a marker."""
    return {
        "program": _PROGRAM,
        "output": output,
        "pid": os.getpid(),
        "host": platform.node(),
        "boot_id": _boot_id(),
    }


def _boot_id() -> str | None:
    """Return the identity of the running kernel, which the containers of a machine share."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _is_of_this_machine(facts: dict[str, Any]) -> bool:
    boot_id = _boot_id()
    same_kernel = boot_id is not None and facts.get("boot_id") == boot_id
    return same_kernel or facts.get("host") == platform.node()


def _remove_left_behind(
    place: Path, prefix: str, output: str | None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Remove the directories of ended processes.

    Returns:
        The removed directories, and those of another machine.

    Raises:
        OutputInUseError: if a running process holds a directory of the same output.
    """
    removed, foreign = [], []
    for directory in _candidates(place, prefix):
        with _opened_marker(directory, output) as marker:
            if marker is None:
                continue
            descriptor, facts = marker
            if not _try_lock(descriptor):
                if output is not None:
                    raise _in_use(facts, place / output)
            elif not _is_of_this_machine(facts):
                foreign.append(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
    return tuple(removed), tuple(foreign) if output is not None else ()


def _candidates(place: Path, prefix: str) -> list[Path]:
    """Return the directories with the prefix; none if the place may not be listed."""
    try:
        with os.scandir(place) as entries:
            return sorted(
                place / entry.name
                for entry in entries
                if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
            )
    except PermissionError:
        return []


@contextmanager
def _opened_marker(
    directory: Path, output: str | None
) -> Iterator[tuple[int, dict[str, Any]] | None]:
    """Yield the marker's descriptor and content, or None if the directory is not ours."""
    try:
        descriptor = os.open(directory / MARKER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        facts = _read_facts(descriptor)
        is_ours = (
            facts is not None
            and facts.get("output") == output
            and os.fstat(descriptor).st_uid == os.geteuid()
        )
        yield (descriptor, facts) if is_ours and facts is not None else None
    finally:
        os.close(descriptor)


def _read_facts(descriptor: int) -> dict[str, Any] | None:
    """Return the content of a marker, or None if it is not one of ours."""
    try:
        facts = json.loads(os.pread(descriptor, _MARKER_BYTES, 0))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("program") == _PROGRAM else None


def _in_use(facts: dict[str, Any], output: Path) -> OutputInUseError:
    return OutputInUseError(
        f"process {facts.get('pid')} on {facts.get('host')} is writing to {output}",
        field="out",
        hint="wait for it to end, stop it, or give another directory",
    )


def _try_lock(descriptor: int) -> bool:
    """Take the lock; return False if another process holds it.

    Raises:
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def _locked_parent(place: Path) -> Iterator[None]:
    """Hold the lock of a directory, as far as its file system has locks and others release it."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written but not read
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with suppress(OSError):
            while not _try_lock(descriptor) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
