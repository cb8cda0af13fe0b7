"""The `alembic` command works from the installed package, as it does in the image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.adapters.database.migrate import head_revision, upgrade
from app.settings import Settings
from tests.migrations.test_migrations import tables

pytestmark = pytest.mark.postgres

REPOSITORY = Path(__file__).parents[2]
SITE_PACKAGES = "/opt/intraslice/lib/python{}/site-packages"


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with their data files, laid out as by a wheel."""
    place = tmp_path_factory.mktemp("wheel")
    steps = [
        *("egg_info", "--egg-base", str(place)),
        *("build", "--build-base", str(place / "build"), "--build-lib", str(place / "lib")),
    ]
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", *steps],
        cwd=REPOSITORY,
        check=True,
    )
    return place / "lib"


def test_alembic_reverts_and_repeats_migrations_of_an_installation(
    site_packages: Path, empty: Settings, tmp_path: Path
) -> None:
    upgrade(empty)
    environment = os.environ | {
        "PYTHONPATH": str(site_packages),
        "INTRASLICE_DATABASE_URL": empty.database_url,
        "ALEMBIC_CONFIG": str(site_packages / "migrations" / "alembic.ini"),
    }

    def alembic(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    alembic("downgrade", "0012")
    assert "deployment" not in tables(empty)
    assert alembic("current").strip() == "0012"
    config = environment.pop("ALEMBIC_CONFIG")
    alembic("-c", config, "upgrade", "head")
    assert "deployment" in tables(empty)
    environment["ALEMBIC_CONFIG"] = config
    assert alembic("current").strip() == f"{head_revision()} (head)"


def test_the_image_names_the_configuration_of_its_installation() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    named = re.search(r"\bALEMBIC_CONFIG=(\S+)", dockerfile)
    python = re.search(r"python:(\d+\.\d+)", dockerfile)
    assert named is not None
    assert python is not None
    folder = SITE_PACKAGES.format(python[1])
    assert named[1].startswith(f"{folder}/")
    assert (REPOSITORY / named[1].removeprefix(f"{folder}/")).is_file()
