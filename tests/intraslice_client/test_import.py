"""Importing the client is cheap, and the former package still works."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import intraslice_client

REPOSITORY = Path(__file__).parents[2]
CPU_SECONDS = 0.5
"""Limit of importing the client in a fresh process; about half of it on an idle machine."""
HEAVY = (
    *("sqlalchemy", "celery", "kombu", "psycopg", "obstore", "fastapi", "starlette"),
    *("torch", "transformers", "numpy", "jinja2"),
)


def test_import_is_fast_and_loads_neither_server_nor_engine() -> None:
    code = (
        "import sys, time; start = time.process_time(); import intraslice_client; "
        "print(time.process_time() - start); "
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        first, loaded = done.stdout.splitlines()
        seconds.append(float(first))
        assert loaded == ""
    # CPU time still varies with the load of the machine; the best of three is the cost itself.
    assert min(seconds) < CPU_SECONDS, seconds


def test_all_public_names_exist() -> None:
    assert sorted(intraslice_client.__all__) == list(intraslice_client.__all__)
    for name in intraslice_client.__all__:
        assert hasattr(intraslice_client, name), name


def test_former_package_is_deprecated() -> None:
    sys.modules.pop("app.client", None)
    with pytest.warns(DeprecationWarning, match="import from intraslice_client instead"):
        former = importlib.import_module("app.client")
    assert former.Client is intraslice_client.Client
    assert former.UploadRefusedError is intraslice_client.UploadRejectedError
