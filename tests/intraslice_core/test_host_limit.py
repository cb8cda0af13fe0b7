"""The memory of the host that a process may use is the least of all limits."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from intraslice_core import host_limit
from intraslice_core.host_limit import host_memory_bytes


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Control groups of a machine without limits; the process is in `system.slice/worker`."""
    memberships, root = tmp_path / "cgroup", tmp_path / "groups"
    memberships.write_text("0::/system.slice/worker\n")
    (root / "system.slice" / "worker").mkdir(parents=True)
    monkeypatch.setattr(host_limit, "_MEMBERSHIPS", memberships)
    monkeypatch.setattr(host_limit, "_UNIFIED", (root, "memory.max"))
    monkeypatch.setattr(host_limit, "_LEGACY", (root / "memory", "memory.limit_in_bytes"))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    return root


def test_without_limits_it_is_that_of_the_machine() -> None:
    assert host_memory_bytes() > 2**28


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_the_limits_of_the_process_count(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    def limit(asked: int) -> tuple[int, int]:
        return (2**20 if asked == kind else resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "getrlimit", limit)
    assert host_memory_bytes() == 2**20


@pytest.mark.parametrize(("text", "is_limit"), [("1048576\n", True), ("max\n", False)])
@pytest.mark.parametrize("group", [".", "system.slice", "system.slice/worker"])
def test_limits_of_the_container_of_the_service_and_of_its_slice_count(
    groups: Path, group: str, text: str, is_limit: bool
) -> None:
    (groups / group / "memory.max").write_text(text)
    assert (host_memory_bytes() == 2**20) == is_limit


def test_limits_of_other_groups_do_not_count(groups: Path) -> None:
    (groups / "system.slice" / "database").mkdir()
    (groups / "system.slice" / "database" / "memory.max").write_text("1048576\n")
    assert host_memory_bytes() > 2**28


def test_limits_of_the_first_version_of_control_groups_count(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/cpu\n7:memory:/worker\n0::/\n")
    (groups / "memory" / "worker").mkdir(parents=True)
    (groups / "memory" / "worker" / "memory.limit_in_bytes").write_text("1048576\n")
    assert host_memory_bytes() == 2**20


def test_a_container_with_groups_of_its_own_reads_the_limit_at_their_root(
    groups: Path, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text("0::/../../other\n")
    (groups / "memory.max").write_text("1048576\n")
    assert host_memory_bytes() == 2**20
