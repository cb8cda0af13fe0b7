"""The memory of the host that a process may use is the least of all limits."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from intraslice_core import host_limit
from intraslice_core.host_limit import host_memory_bytes


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_limit, "_CONTAINER_LIMITS", ())
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)


def test_without_limits_it_is_that_of_the_machine() -> None:
    assert host_memory_bytes() > 2**28


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_the_limits_of_the_process_count(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    def limit(asked: int) -> tuple[int, int]:
        return (2**20 if asked == kind else resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "getrlimit", limit)
    assert host_memory_bytes() == 2**20


@pytest.mark.parametrize(("text", "is_limit"), [("1048576\n", True), ("max\n", False)])
def test_the_limit_of_the_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, is_limit: bool
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(text)
    monkeypatch.setattr(host_limit, "_CONTAINER_LIMITS", (file, tmp_path / "absent"))
    assert (host_memory_bytes() == 2**20) == is_limit
