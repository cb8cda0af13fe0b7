"""Files are written atomically and identified by digests."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intraslice_core.errors import (
    InsufficientDiskError,
    OutputExistsError,
    OutputNotWritableError,
)
from intraslice_core.files import (
    atomic_file,
    combined_sha256,
    file_sha256,
    require_free_output,
    require_writable_directory,
    require_writable_file,
)


def test_file_gets_its_name_only_when_complete(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "file"
    with atomic_file(destination) as partial:
        partial.write_text("content")
        assert not destination.exists()
    assert destination.read_text() == "content"
    assert list(destination.parent.iterdir()) == [destination]


def test_failure_keeps_the_former_content_and_no_partial_file(tmp_path: Path) -> None:
    destination = tmp_path / "file"
    destination.write_text("before")

    def interrupted() -> None:
        with atomic_file(destination) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert destination.read_text() == "before"
    assert list(tmp_path.iterdir()) == [destination]


def test_digests_depend_on_names_and_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert file_sha256(first) == hashlib.sha256(b"1").hexdigest()
    assert combined_sha256([first, second]) == combined_sha256([second, first])
    both = combined_sha256([first, second])
    second.rename(tmp_path / "c")
    assert combined_sha256([first, tmp_path / "c"]) != both


CHECK_PATHS = """
import sys
from pathlib import Path
from intraslice_core import errors, files

for name in ("read-only/x", "read-only", "volume", "volume/x"):
    try:
        files.require_free_output(Path(name), "--out")
    except errors.OutputNotWritableError as error:
        print(error)
"""


def unusable_paths(folder: Path) -> dict[str, tuple[Path, str]]:
    """Paths at which nothing can be written, each with the reason that an error must give."""
    (folder / "file").write_text("precious")
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "below a file": (folder / "file" / "x", "file is a file"),
        "dangling link": (folder / "link", "nowhere, which is missing"),
        "below a dangling link": (folder / "link" / "x", "nowhere, which is missing"),
        "circle of links": (folder / "loop", "symbolic links"),
        "below proc": (Path("/proc/intraslice/x"), "No such file"),
        "long name": (folder / ("n" * 300), "name too long"),
        "long name in a missing place": (folder / "missing" / ("n" * 300), "name too long"),
        "long path": (folder / "/".join(["n" * 200] * 25), "name too long"),
    }


@pytest.mark.parametrize(
    "check", [require_writable_directory, require_writable_file, require_free_output]
)
def test_unusable_path_is_an_error_with_option_path_and_reason(
    tmp_path: Path, check: Callable[[Path, str], None]
) -> None:
    paths = unusable_paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for path, reason in paths.values():
        with pytest.raises(OutputNotWritableError, match=f"--option: .*{reason}") as caught:
            check(path, "--option")
        assert str(path)[:100] in caught.value.message
        assert len(caught.value.message) < 600
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "precious"


def test_kind_of_the_path_must_fit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OutputNotWritableError, match="it is a file"):
        require_writable_directory(file, "--option")
    with pytest.raises(OutputNotWritableError, match="it is a directory"):
        require_writable_file(tmp_path, "--option")
    with pytest.raises(OutputExistsError, match="already exists"):
        require_free_output(file, "--option")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("name", ["new", "new/below", "empty", "link to empty", "n" * 250])
def test_usable_paths_pass_and_stay_as_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link to empty").symlink_to("empty")
    before = sorted(tmp_path.rglob("*"))
    require_free_output(tmp_path / name, "--option")
    require_writable_directory(tmp_path / name, "--option")
    if "empty" not in name:
        require_writable_file(tmp_path / name, "--option")
    assert sorted(tmp_path.rglob("*")) == before


def test_read_only_file_systems_and_mount_points_are_errors(tmp_path: Path) -> None:
    for name in ("read-only", "volume"):
        (tmp_path / name).mkdir()
    mounts = "mount -t tmpfs -o ro none read-only && mount -t tmpfs none volume"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    done = subprocess.run(
        [*command, sys.executable, "-c", CHECK_PATHS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    below, itself, volume = done.stdout.splitlines()
    assert below.startswith("--out: read-only/x cannot be written: Read-only file system")
    assert itself.startswith("--out: read-only cannot be written: it is a mount point")
    assert volume.startswith("--out: volume cannot be written: it is a mount point")
    assert "volume/model" in volume


def test_directory_of_another_user_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere
        os.seteuid(65_534)
    try:
        with pytest.raises(OutputNotWritableError, match=r"--option: .*Permission denied"):
            require_writable_directory(tmp_path / "locked" / "x", "--option")
    finally:
        os.seteuid(os.getuid())


def test_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(InsufficientDiskError, match=r"--option: .*No space"):
        require_writable_directory(tmp_path, "--option")
