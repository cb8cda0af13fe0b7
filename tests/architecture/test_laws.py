"""The laws of the house, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy")


def fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_laws_hold() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", ["app.main", "workers.main", "workers.runner", "app.adapters.database.migrate"]
)
def test_service_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert fresh_process(code) == "[]"


def test_api_is_imported_within_seconds() -> None:
    """About one on an idle machine; the limit leaves room for a busy one."""
    code = "import time; t = time.process_time(); import app.main; print(time.process_time() - t)"
    assert float(fresh_process(code)) < 3.0


def test_only_the_engine_room_of_the_database_commits() -> None:
    for place in ("app", "workers"):
        for file in (REPOSITORY / place).rglob("*.py"):
            text = file.read_text()
            if file.name != "engine.py" or file.parent.name != "database":
                assert ".commit(" not in text, file
                assert ".begin(" not in text, file


def test_only_the_removal_service_deletes_objects() -> None:
    """It compares the store's marker with the database first."""
    for place in ("app", "workers"):
        for file in (REPOSITORY / place).rglob("*.py"):
            if file.relative_to(REPOSITORY).as_posix() not in {
                "app/services/removal.py",
                "app/adapters/storage.py",
                "app/embedded/seaweed.py",
            }:
                text = file.read_text()
                assert "store.delete(" not in text, file
                assert "obstore.delete" not in text, file


TRANSLATED_IN = "intraslice_core/device_memory.py"
NO_TENSORS = {
    "intraslice_core/device.py": "parses the name of a device",
    "intraslice_core/rank_watch.py": "reads and writes the store of a launcher",
}


def catches(handler: ast.ExceptHandler, name: str) -> bool:
    """Return whether a handler names an exception, by its last part."""
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        isinstance(kind, ast.Name | ast.Attribute) and ast.unparse(kind).split(".")[-1] == name
        for kind in types
    )


def passes_on(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler begins with `if lacks_memory(error): raise`."""
    first = handler.body[0]
    return (
        isinstance(first, ast.If)
        and ast.unparse(first.test) == f"lacks_memory({handler.name})"
        and isinstance(first.body[0], ast.Raise)
        and first.body[0].exc is None
    )


def handlers_of_runtime_errors(file: Path) -> list[tuple[int, bool]]:
    """Return line of every handler of RuntimeError, and whether out-of-memory passes it."""
    handlers = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Try):
            for number, handler in enumerate(node.handlers):
                if catches(handler, "RuntimeError"):
                    before = node.handlers[:number]
                    taken = any(catches(other, "OutOfMemoryError") for other in before)
                    handlers.append((handler.lineno, taken or passes_on(handler)))
    return handlers


def files_with_handlers() -> Iterator[str]:
    """Yield the files of the engine that catch RuntimeError."""
    for path in sorted((REPOSITORY / "intraslice_core").rglob("*.py")):
        file = path.relative_to(REPOSITORY).as_posix()
        if file in NO_TENSORS or file == TRANSLATED_IN or not handlers_of_runtime_errors(path):
            continue
        yield file


@pytest.mark.parametrize("file", list(files_with_handlers()))
def test_no_handler_of_runtime_errors_swallows_out_of_memory(file: str) -> None:
    """All errors for lack of memory are RuntimeErrors, and only `device_memory` knows them."""
    for line, passes in handlers_of_runtime_errors(REPOSITORY / file):
        assert passes, f"{file}:{line}: let errors about memory pass, by lacks_memory(error)"


def test_only_settings_read_the_environment() -> None:
    # The command line and the servers' launcher pass an environment on; they do not interpret it.
    # The advice about unknown variables and the S3 client's endpoint needs their names.
    # MLflow has a switch that it reads as it is imported.
    # The client's four variables are read without the settings, which take longer to import.
    passing_on = {
        "app/adapters/mlflow_registry.py",
        "app/cli/remote/configuration.py",
        "app/cli/service.py",
        "app/embedded/seaweed.py",
        "app/embedded/stack.py",
        "app/embedded/whole_service.py",
        "app/environment.py",
        "app/settings/settings.py",
        "app/settings/store_endpoints.py",
        "workers/child_process.py",
    }
    for place in ("app", "workers"):
        for file in (REPOSITORY / place).rglob("*.py"):
            if str(file.relative_to(REPOSITORY)) in passing_on:
                continue
            text = file.read_text()
            assert "os.environ" not in text, file
            assert "getenv" not in text, file
