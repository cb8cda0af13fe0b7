"""Memory of the host that this process may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

_MEMBERSHIPS = Path("/proc/self/cgroup")
"""Control groups of this process, a line for each hierarchy: `number:controllers:path`."""
_UNIFIED = (Path("/sys/fs/cgroup"), "memory.max")
_LEGACY = (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
"""Place of the memory hierarchy, and the name of a group's limit, of cgroups 2 and 1."""
_PROCESS_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
"""Limits of the process: of its address space, and of its private writable memory."""

_runs_at_once: ContextVar[int] = ContextVar("runs_at_once", default=1)


@contextmanager
def sharing_host(runs: int) -> Iterator[None]:
    """Count on an equal part of the host's memory only, as so many runs may use it at once."""
    token = _runs_at_once.set(runs)
    try:
        yield
    finally:
        _runs_at_once.reset(token)


def runs_at_once() -> int:
    """Return the number of runs that may use the host's memory at once; 1 unless it is shared."""
    return _runs_at_once.get()


def host_memory_bytes() -> int:
    """Return the memory of this machine, or of its container, service or process if that is less.

    What others use of it does not count, so that it is the same for every run.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_group_limit(file) for file in _group_files()]
    limits += [_process_limit(kind) for kind in _PROCESS_LIMITS]
    return min([physical, *(limit for limit in limits if limit is not None)])


def _group_files() -> Iterator[Path]:
    """Yield the files that hold the limits of this process's control groups and those above them.

    A container sees its own group as the root of the hierarchy. The group of a service, as systemd
    makes it, lies below.
    """
    try:
        lines = _MEMBERSHIPS.read_text().splitlines()
    except OSError:
        lines = []
    for hierarchy, name in (_UNIFIED, _LEGACY):
        yield hierarchy / name
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        if ".." in group.parts:  # of a container, which does not see the groups around it
            continue
        if not controllers or "memory" in controllers.split(","):
            hierarchy, name = _LEGACY if controllers else _UNIFIED
            for part in (group, *group.parents):
                yield hierarchy / part / name


def _group_limit(file: Path) -> int | None:
    """Return the limit of a control group; None without one."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _process_limit(kind: int) -> int | None:
    """Return a limit of this process; None without one."""
    limit, _ = resource.getrlimit(kind)
    return None if limit == resource.RLIM_INFINITY else limit
