"""Commands on a service start without the modules of the server and the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.empty_service import empty_service

REPOSITORY = Path(__file__).parents[4]
SERVER = (
    *("alembic", "celery", "fastapi", "jinja2", "kombu", "obstore", "prometheus_client"),
    *("psycopg", "redis", "sqlalchemy", "starlette", "structlog", "uvicorn"),
    *("app.adapters", "app.api", "app.main", "app.server", "app.services", "app.settings"),
    *("app.telemetry", "migrations", "workers"),
)
ENGINE = (
    *("datasets", "gguf", "huggingface_hub", "numpy", "pyarrow", "safetensors", "tokenizers"),
    *("torch", "transformers", "intraslice_core.checkpoints.inspection"),
    *("intraslice_core.cost_model", "intraslice_core.pipeline", "intraslice_core.reports"),
)
CODE = """
import atexit, json, sys
from app.cli.main import main
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
sys.argv[0] = "intraslice"
main()
"""


def loaded_modules(*arguments: str, url: str) -> set[str]:
    """Run a command in a fresh process and return its modules at the end."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "INTRASLICE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--help"),
        ("list",),
        ("list", "--json"),
        ("webhooks", "list"),
        ("keys", "--help"),
        ("config", "show"),
        ("verify", "--help"),
    ],
    ids=" ".join,
)
def test_command_loads_neither_server_nor_engine(arguments: tuple[str, ...]) -> None:
    with empty_service() as url:
        loaded = loaded_modules(*arguments, url=url)
    assert "typer" in loaded
    assert loaded.isdisjoint(SERVER), sorted(loaded.intersection(SERVER))
    assert loaded.isdisjoint(ENGINE), sorted(loaded.intersection(ENGINE))


def test_list_loads_the_models_of_its_own_response_only() -> None:
    with empty_service() as url:
        loaded = loaded_modules("list", url=url)
    assert "app.domain.job" in loaded
    others = {"audit", "comparison", "sweep", "validation", "webhook"}
    assert loaded.isdisjoint(f"app.domain.{name}" for name in others)
    assert loaded.isdisjoint({"pydantic_settings", "intraslice_client._async"})
