"""Importing the client loads what is used, and the former package still works."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import intraslice_client
from intraslice_client import _bodies

REPOSITORY = Path(__file__).parents[2]
HEAVY = (
    *("sqlalchemy", "celery", "kombu", "psycopg", "obstore", "fastapi", "starlette"),
    *("torch", "transformers", "numpy", "jinja2"),
)


def loaded_modules(code: str) -> set[str]:
    """Return the modules that a fresh process has after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_every_public_name_is_imported_without_server_and_engine() -> None:
    assert loaded_modules("from intraslice_client import *").isdisjoint(HEAVY)


def test_import_loads_a_module_only_when_one_of_its_names_is_used() -> None:
    assert not {name for name in loaded_modules("import intraslice_client") if "domain" in name}
    modules = loaded_modules("from intraslice_client import Client; Client('http://localhost')")
    unused = {"comparison", "sweep", "validation", "webhook"}
    assert modules.isdisjoint(f"app.domain.{name}" for name in unused)
    assert "intraslice_client._async" not in modules
    assert "app.domain.job" in modules


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    for module in (intraslice_client, _bodies):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        checked = next(node for node in tree.body if isinstance(node, ast.If)).body
        imports = [node for node in checked if isinstance(node, ast.ImportFrom)]
        declared = {str(node.module): tuple(name.name for name in node.names) for node in imports}
        assert declared == module.NAMES_BY_MODULE
        assert sorted(module.__all__) == sorted(sum(declared.values(), ()))


def test_all_public_names_exist() -> None:
    assert sorted(intraslice_client.__all__) == list(intraslice_client.__all__)
    for name in intraslice_client.__all__:
        assert hasattr(intraslice_client, name), name
        assert name in dir(intraslice_client), name
    assert not hasattr(intraslice_client, "Missing")


def test_former_package_is_deprecated() -> None:
    sys.modules.pop("app.client", None)
    with pytest.warns(DeprecationWarning, match="import from intraslice_client instead"):
        former = importlib.import_module("app.client")
    assert former.Client is intraslice_client.Client
    assert former.UploadRefusedError is intraslice_client.UploadRejectedError
