"""Commands, options, settings, requests and imports in README and documentation exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from app.api.schemas import JobCreate
from app.api.sweep_schemas import SweepCreate
from app.api.upload_schemas import UploadCreate
from app.cli.main import app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
CLIENT_VARIABLES = {"INTRASLICE_URL", "INTRASLICE_PROFILE", "INTRASLICE_API_KEY_FILE"}
_COMMAND = re.compile(r"(?<!-O )(?<!-n )\bintraslice (?=[a-z-])([^`\n|#;&]*)")
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.M)
_REQUEST = re.compile(r"/v1/(jobs|sweeps|uploads) [^\n]*-d '(\{.*?\n    \})'", re.S)
_MODELS = {"jobs": JobCreate, "sweeps": SweepCreate, "uploads": UploadCreate}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after each `intraslice` that is shown as code."""
    for line in page.read_text("utf-8").splitlines():
        snippets = [line] if line.startswith("    ") else re.findall(r"`([^`]*)`", line)
        fenced = [line] if re.match(r"(\w+=\$\()?intraslice ", line) else []
        for code in [*snippets, *fenced]:
            for words in _COMMAND.findall(code):
                yield words.replace("[", " ").replace("]", " ").split()


def problems(words: list[str]) -> list[str]:
    """Return the commands and options of a command line that do not exist."""
    command: Any = typer.main.get_command(app)
    used = [name for word in words if (name := re.split(r"[=)…]", word)[0])]
    position = 0
    while position < len(used) and (subcommands := getattr(command, "commands", None)):
        if used[position].startswith("-"):
            break
        subcommand = subcommands.get(used[position].rstrip("…,.:"))
        if subcommand is None:
            return [f"no command {used[position]}"]
        command, position = subcommand, position + 1
    options = {"--help", "--install-completion"}
    options |= {
        name for option in command.params for name in (*option.opts, *option.secondary_opts)
    }
    given = (word for word in used[position:] if re.match("--[a-z]", word))
    return [f"{command.name} has no {word}" for word in given if word not in options]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_command_and_option_that_is_shown_exists(page: Path) -> None:
    checked = [(words, problems(words)) for words in commands(page)]
    assert [(" ".join(words), wrong) for words, wrong in checked if wrong] == []


def test_readme_and_client_page_show_many_commands() -> None:
    assert len(list(commands(README))) >= 9
    assert len(list(commands(ROOT / "docs" / "client.md"))) > 20


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert problems(["submitt", "MODEL"])
    assert problems(["submit", "MODEL", "--ration", "0.3"])
    assert problems(["sweeps", "make"])
    assert problems(["submit", "MODEL", "--ratio", "0.3"]) == []


def test_every_setting_that_is_named_exists() -> None:
    settings = {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
    settings |= {"INTRASLICE_TEST_DEVICE"}  # of the tests alone
    for page in PAGES:
        named = set(re.findall(r"INTRASLICE_[A-Z][A-Z0-9_]*[A-Z0-9]", page.read_text("utf-8")))
        assert named - settings == set(), page


def test_the_configuration_page_names_every_setting() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    named = set(re.findall(r"INTRASLICE_[A-Z][A-Z0-9_]*[A-Z0-9]", page))
    assert {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields} <= named


def requests(page: Path) -> list[tuple[str, str]]:
    """Return the resource and the body of each request that a page shows."""
    return _REQUEST.findall(page.read_text("utf-8"))


def test_requests_that_are_shown_are_valid() -> None:
    shown = {page: requests(page) for page in PAGES}
    assert {kind for kind, _ in shown[README]} == {"jobs"}
    assert {kind for kind, _ in shown[ROOT / "docs" / "http.md"]} == set(_MODELS)
    for page_requests in shown.values():
        for kind, body in page_requests:
            complete = body.replace("9f86…", "9f86" * 16)
            _MODELS[kind].model_validate(json.loads(complete))


def test_imports_of_the_readmes_python_blocks_exist() -> None:
    blocks = [textwrap.dedent(block) for block in _INDENTED.findall(README.read_text("utf-8"))]
    programs = [block for block in blocks if re.match(r"\s*from \S+ import", block)]
    assert programs
    for program in programs:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name


def test_the_readme_fits_on_a_few_screens() -> None:
    assert 120 <= len(README.read_text("utf-8").splitlines()) <= 150
