"""Names that benchmarks import from the packages exist, so that none ends at its start."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PACKAGES = ("app", "intraslice_client", "intraslice_core", "workers")
OPTIONAL = {"intraslice_core.vllm_model"}
"""Modules that need a package which is not installed here."""


def imported_names(file: Path) -> list[tuple[str, str]]:
    """Return module and name of everything that a file imports from the project's packages."""
    nodes = [
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    return [
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.split(".")[0] in PACKAGES and node.module not in OPTIONAL
        for alias in node.names
    ]


def missing_names(names: list[tuple[str, str]]) -> list[str]:
    """Return the imports that have neither an attribute nor a module behind them."""
    missing = []
    for module, name in names:
        if hasattr(importlib.import_module(module), name):
            continue
        try:
            importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            missing.append(f"{module}.{name}")
    return missing


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_names_imported_by_a_benchmark_exist(file: Path) -> None:
    assert missing_names(imported_names(file)) == []


def test_a_missing_name_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.py"
    file.write_text("from intraslice_core.export.gguf import llama_layout, write_gguf\n")
    assert missing_names(imported_names(file)) == ["intraslice_core.export.gguf.llama_layout"]
