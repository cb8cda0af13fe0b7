"""Memory of the host that this process may use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_CONTAINER_LIMITS = tuple(
    map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))
)
"""Memory limits of the container, of cgroups 2 and 1."""
_PROCESS_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
"""Limits of the process: of its address space, and of its private writable memory."""


def host_memory_bytes() -> int:
    """Return the memory of this machine, or of its container or process if that is less.

    What others use of it does not count, so that it is the same for every run.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_container_limit(file) for file in _CONTAINER_LIMITS]
    limits += [_process_limit(kind) for kind in _PROCESS_LIMITS]
    return min([physical, *(limit for limit in limits if limit is not None)])


def _container_limit(file: Path) -> int | None:
    """Return the limit in a file of the control group; None without one."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _process_limit(kind: int) -> int | None:
    """Return a limit of this process; None without one."""
    limit, _ = resource.getrlimit(kind)
    return None if limit == resource.RLIM_INFINITY else limit
