"""Scratch directories: a killed run's are removed by the next, a running one's never."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from intraslice_core import scratch
from intraslice_core.errors import OutputInUseError
from intraslice_core.files import atomic_file
from intraslice_core.scratch import MARKER, held_directory, scratch_directory, staging_directory

HOLD = """
import sys
from pathlib import Path
from intraslice_core import files, scratch

kind, place = sys.argv[1], Path(sys.argv[2])
if kind == "held":
    context = scratch.held_directory(place / "work", place)
elif kind == "partial":
    context = scratch.scratch_directory(files.PARTIAL_PREFIX, place)
elif kind == "staging":
    context = scratch.staging_directory(place / "out")
else:
    context = scratch.scratch_directory("model-", place)
with context as held:
    if held is not None:
        (held.directory / "weights").write_text("gigabytes")
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(kind: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a directory until it is killed or the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def killed_process(kind: str, place: Path) -> Path:
    """Return the directory that a killed process has left behind."""
    with other_process(kind, place) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (left,) = place.iterdir()
    return left


def test_directory_of_a_killed_run_is_removed_and_reported(tmp_path: Path) -> None:
    left = killed_process("staging", tmp_path)
    assert (left / "weights").exists()
    with staging_directory(tmp_path / "out") as staging:
        assert staging.removed == (left,)
        assert staging.warnings == (f"removed {left}, which an interrupted run had left behind",)
        assert list(tmp_path.iterdir()) == [staging.directory]
    assert list(tmp_path.iterdir()) == []


def test_second_process_for_an_output_is_an_error_and_deletes_nothing(tmp_path: Path) -> None:
    with other_process("staging", tmp_path) as process:
        before = sorted(tmp_path.rglob("*"))
        expected = rf"process {process.pid} on .* is writing to {tmp_path}/out"
        with pytest.raises(OutputInUseError, match=expected), staging_directory(tmp_path / "out"):
            raise AssertionError
        assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "link").symlink_to("out")
        with (
            pytest.raises(OutputInUseError, match=expected),
            staging_directory(tmp_path / "link"),
        ):
            raise AssertionError
        with staging_directory(tmp_path / "out2") as other:
            assert other.removed == ()
    with staging_directory(tmp_path / "out") as staging:
        assert len(staging.removed) == 1


def test_unfinished_file_of_a_killed_process_is_removed_by_the_next_write(tmp_path: Path) -> None:
    left = killed_process("partial", tmp_path)
    assert (left / "weights").exists()
    with other_process("partial", tmp_path):
        with atomic_file(tmp_path / "file") as partial:
            partial.write_text("complete")
        assert len(list(tmp_path.glob(".partial-*"))) == 1  # that of the running process
        assert not left.exists()


def test_processes_may_share_a_place_for_scratch_directories(tmp_path: Path) -> None:
    with (
        other_process("scratch", tmp_path),
        scratch_directory("model-", tmp_path) as first,
        scratch_directory("model-", tmp_path) as second,
    ):
        assert first.removed == second.removed == ()
        assert len(list(tmp_path.iterdir())) == 3
    (left,) = tmp_path.iterdir()
    with scratch_directory("model-", tmp_path) as scratch:
        assert scratch.removed == (left,)


def test_only_directories_that_are_provably_ours_are_removed(tmp_path: Path) -> None:
    left = killed_process("staging", tmp_path)
    marker = json.loads((left / MARKER).read_text())
    contents = {
        "no-marker": None,
        "empty-marker": "",
        "other-json": "[]",
        "other-program": json.dumps(marker | {"program": "backup"}),
        "other-output": json.dumps(marker | {"output": "out2"}),
    }
    for name, content in contents.items():
        directory = tmp_path / f".out.staging-{name}"
        directory.mkdir()
        (directory / "precious").touch()
        if content is not None:
            (directory / MARKER).write_text(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / MARKER).write_text(json.dumps(marker))
    (tmp_path / ".out.staging-link").symlink_to("elsewhere")
    with staging_directory(tmp_path / "out") as staging:
        assert staging.removed == (left,)
    assert len(list(tmp_path.glob(".out.staging-*/precious"))) == len(contents)
    assert (tmp_path / "elsewhere" / MARKER).exists()


def test_directory_of_another_machine_stays_and_is_reported(tmp_path: Path) -> None:
    left = killed_process("staging", tmp_path)
    marker = json.loads((left / MARKER).read_text())
    (left / MARKER).write_text(json.dumps(marker | {"host": "elsewhere", "boot_id": "another"}))
    with staging_directory(tmp_path / "out") as staging:
        assert staging.removed == ()
        (warning,) = staging.warnings
    assert str(left) in warning
    assert "another machine" in warning
    assert left.exists()
    # The container of a killed run had another host name, but ran under the same kernel.
    (left / MARKER).write_text(json.dumps(marker | {"host": "container"}))
    if marker["boot_id"] is not None:
        with staging_directory(tmp_path / "out") as staging:
            assert staging.removed == (left,)


def test_file_system_without_locks_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int) -> bool:
        raise OSError(38, "no locks")

    monkeypatch.setattr(scratch, "_try_lock", no_locks)
    with (
        staging_directory(tmp_path / "out") as first,
        staging_directory(tmp_path / "out") as second,
    ):
        assert second.removed == ()
        assert first.directory.exists()
    assert list(tmp_path.iterdir()) == []


def test_held_directory_is_of_one_process_and_free_after_a_kill(tmp_path: Path) -> None:
    with other_process("held", tmp_path) as process:
        expected = rf"process {process.pid} on .* is writing to"
        with (
            pytest.raises(OutputInUseError, match=expected),
            held_directory(tmp_path / "work", tmp_path),
        ):
            raise AssertionError
    with held_directory(tmp_path / "work", tmp_path):
        (tmp_path / "work" / MARKER).unlink()  # as its holder does at the end
        with held_directory(tmp_path / "work", tmp_path):
            pass


def test_long_names_have_staging_directories(tmp_path: Path) -> None:
    names = ("n" * 255, "n" * 254, "名" * 85)
    for name in names:
        with staging_directory(tmp_path / name) as staging:
            staging.directory.joinpath("checkpoint").mkdir()
            staging.directory.joinpath("checkpoint").replace(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
