"""Tools that build and check the image, without building one: arguments, options, stripping."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.compose import REPOSITORY
from tools.build_pip_config import build_options, read_settings
from tools.strip_packages import main as strip

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
OTHER = {"amd64": "arm64", "arm64": "amd64"}[MACHINE]


def build_image(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "tools" / "build_image.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def planned(*arguments: str) -> list[str]:
    """Return the commands of a dry run."""
    done = build_image("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


def test_a_dry_run_builds_on_the_pinned_base_and_checks_the_image(tmp_path: Path) -> None:
    build, check = planned("--storage", str(tmp_path / "image storage"))
    assert build.startswith(rf"buildah --root {tmp_path}/image\ storage/images ")
    assert " build --isolation=chroot " in build
    assert f" --platform linux/{MACHINE} " in build
    assert re.search(r"BASE_IMAGE=\S+:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64} ", build)
    assert " --tag localhost/intraslice ." in build
    assert "tools/check_image.py localhost/intraslice" in check


def test_another_platform_with_cuda_is_built_but_not_run_here() -> None:
    (build,) = planned("--platform", f"linux/{OTHER}", "--variant", "cuda", "--tag", "here:cuda")
    assert f" --platform linux/{OTHER} " in build
    indexes = re.findall(r"TORCH_INDEX=(\S+)", build)
    assert indexes[-1] == "https://download.pytorch.org/whl/cu130"
    assert "--tag here:cuda ." in build


def test_a_base_of_debian_and_an_archive_are_further_commands() -> None:
    base, build, push = planned("--base", "debian", "--no-check", "--archive", "/tmp/image.tar")
    assert base.startswith("tools/debian_base.sh localhost/intraslice-base buildah ")
    assert " --pull-never " in build
    assert "BASE_IMAGE=localhost/intraslice-base " in build
    assert push.endswith("docker-archive:/tmp/image.tar:localhost/intraslice")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "rocm"], "--variant rocm: use cpu or cuda"),
        (["--platform", "linux/s390x"], "--platform linux/s390x: use linux/amd64 or linux/arm64"),
        (["--base", "alpine"], "--base alpine: use auto, pinned or debian"),
        (["--base", "debian", "--platform", f"linux/{OTHER}"], "--base debian: only for"),
        (["--tag"], "--tag needs a value"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(arguments: list[str], message: str) -> None:
    done = build_image("--dry-run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_stripping_removes_tests_and_headers_and_keeps_licences(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    remaining = [
        "numpy/__init__.py",
        "numpy/testing/__init__.py",
        "numpy/tests/LICENSE.txt",
        "numpy-2.0.dist-info/tests/RECORD",
        "tests/top_level.py",
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cpu.so",
        "triton/backends/driver.c",
    ]
    removed = [
        "numpy/tests/test_array.py",
        "numpy/core/tests/data/array.bin",
        "numpy/core.pyi",
        "torch/bin/protoc",
        "torch/include/ATen/ATen.h",
        "torch/lib/libstatic.a",
        "torch/test/__init__.py",
        "pyarrow/libarrow_flight.so.2600",
    ]
    for name in (*remaining, *removed):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("content")
    assert strip([str(tmp_path)]) == 0
    left = {str(path.relative_to(packages)) for path in packages.rglob("*") if path.is_file()}
    assert left == set(remaining)
    assert not (packages / "torch" / "include").exists()


def test_stripping_demands_an_existing_directory(tmp_path: Path) -> None:
    assert strip([str(tmp_path / "absent")]) == 2


def test_settings_of_pip_come_from_the_environment_before_files() -> None:
    listing = (
        ":env:.default-timeout='180'\n"
        ":env:.find-links='/wheels'\n"
        ":env:.index-url='https://first.example/simple'\n"
        "global.find-links='/wheels /more'\n"
        "global.index-url='https://second.example/simple'\n"
        "global.no-cache-dir='true'\n"
        "download.timeout='1'\n"
    )
    assert read_settings(listing) == {
        "timeout": ["180"],
        "find-links": ["/wheels", "/more"],
        "index-url": ["https://first.example/simple"],
    }


def test_pip_in_the_build_reads_mounted_files_only(tmp_path: Path) -> None:
    wheels, certificates = tmp_path / "wheels", tmp_path / "ca.pem"
    wheels.mkdir()
    certificates.write_text("certificate")
    (wheels / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    settings = {
        "cert": [str(certificates)],
        "find-links": [str(wheels), "https://links.example/"],
        "extra-index-url": ["file:///local/simple", "https://extra.example/simple"],
    }
    place = tmp_path / "pip"
    assert build_options(place, settings) == [
        *("--volume", f"{place}:/mnt:ro"),
        *("--volume", f"{wheels}:/mnt/0:ro"),
        *("--secret", f"id=pip.conf,src={place}/pip.conf"),
        *("--build-arg", "TORCH_INDEX=https://pypi.org/simple"),
    ]
    assert (place / "pip.conf").read_text() == (
        "[global]\n"
        "cert = /mnt/certificates.pem\n"
        "find-links = https://links.example/ /mnt/0\n"
        "extra-index-url = https://extra.example/simple\n"
    )
    assert (place / "certificates.pem").read_text() == "certificate"


def test_packages_of_cuda_are_pinned_apart_from_the_others() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (REPOSITORY / name).read_text().splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    cuda = pins("constraints-cuda.txt")
    assert {"cuda-toolkit", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "triton"} <= cuda.keys()
    assert not cuda.keys() & pins("constraints.txt").keys()


def test_shell_scripts_pass_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [*(REPOSITORY / "tools").glob("*.sh"), REPOSITORY / ".ci" / "run"]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
