"""The previous release works on this tree's schema: migrations are compatible for one release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from app.adapters.database.migrate import head_revision, upgrade
from app.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.broker]

REPOSITORY = Path(__file__).parents[2]
COMMIT_FILE = Path(__file__).with_name("previous_release.txt")
API = ("jobs", "job_verbs", "artifacts", "uploads", "keys", "sweeps", "webhooks", "retention")
TESTS = (
    *(f"tests/app/api/test_{name}.py" for name in API),
    *(f"tests/app/services/test_{name}.py" for name in ("jobs", "retention")),
    "tests/app/api/test_auth.py::test_health_needs_no_key",
)
FIRST_WITH_WINDOW = "0014"
FEWEST_TESTS = 150
"""Far fewer than there are, so that a wrong path or mark is noticed."""


@pytest.fixture(scope="module")
def previous_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the commit that `previous_release.txt` names."""
    commit = COMMIT_FILE.read_text().strip()
    # The files of a checkout may belong to another user than this process.
    git = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY)]
    archive = subprocess.run([*git, "archive", commit], capture_output=True, check=False)
    if archive.returncode != 0:
        reason = archive.stderr.decode(errors="replace").strip()
        shallow = [*git, "rev-parse", "--is-shallow-repository"]
        answer = subprocess.run(shallow, capture_output=True, text=True, check=False)
        # A whole clone has the commit, unless `previous_release.txt` is wrong.
        assert answer.stdout.strip() != "false", reason
        pytest.skip(f"the previous release, {commit}, is not in this clone: {reason}")
    tree = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


@pytest.fixture(scope="module")
def previous_revision(previous_tree: Path) -> str:
    """Revision of the previous release's code."""
    names = (previous_tree / "migrations" / "versions").glob("[0-9]*.py")
    return max(name.name[:4] for name in names)


def test_the_window_of_the_schema_includes_the_previous_release(
    empty: Settings, previous_revision: str
) -> None:
    upgrade(empty)
    with psycopg.connect(empty.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT oldest_revision FROM schema_window").fetchone()
    assert row is not None
    assert row[0] <= previous_revision, "contract one release after the expansion"


def test_the_previous_release_passes_its_tests_on_the_new_schema(
    previous_tree: Path, previous_revision: str, tmp_path: Path
) -> None:
    log = tmp_path / "migrate.log"
    # Tests on S3 are repetitions of tests on a directory; the store does not concern the schema.
    selection = ["-m", "not object_store"]
    if previous_revision < FIRST_WITH_WINDOW:
        # That code is ready only if the schema's revision equals its own.
        selection += ["--deselect", TESTS[-1]]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-p", "newer_schema", "--basetemp", str(tmp_path / "run"), *selection, *TESTS),
        ],
        cwd=previous_tree,
        env=environment
        | {
            "PYTHONPATH": os.pathsep.join([str(previous_tree), str(Path(__file__).parent)]),
            "NEW_TREE": str(REPOSITORY),
            "PREVIOUS_TREE": str(previous_tree),
            "MIGRATE_LOG": str(log),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert log.read_text().startswith(f"the schema was created, is at {head_revision()} now")
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= FEWEST_TESTS
    print(passed[0], "of the previous release")  # noqa: T201 (how many is part of the result)
