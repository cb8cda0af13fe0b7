"""What the README and the documentation name is there: commands, options, settings, requests."""

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
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "mlops" / "README.md",
]
OF_CLIENTS = {"INTRASLICE_URL", "INTRASLICE_PROFILE", "INTRASLICE_API_KEY_FILE"}
_COMMAND = re.compile(r"(?<!-O )\bintraslice (?=[a-z-])([^`\n|#;&]*)")
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.M)
_SENT = re.compile(r"/v1/(jobs|sweeps|uploads) [^\n]*-d '(\{.*?\n    \})'", re.S)
_MODELS = {"jobs": JobCreate, "sweeps": SweepCreate, "uploads": UploadCreate}


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind each `intraslice` that is shown as code."""
    for line in page.read_text("utf-8").splitlines():
        shown = [line] if line.startswith("    ") else re.findall(r"`([^`]*)`", line)
        fenced = [line] if re.match(r"(\w+=\$\()?intraslice ", line) else []
        for code in [*shown, *fenced]:
            for words in _COMMAND.findall(code):
                yield words.replace("[", " ").replace("]", " ").split()


def problems(words: list[str]) -> list[str]:
    """What of a command line does not exist."""
    command: Any = typer.main.get_command(app)
    used = [word for word in (re.split(r"[=)…]", one)[0] for one in words) if word]
    place = 0
    while place < len(used) and (inside := getattr(command, "commands", None)):
        if used[place].startswith("-"):
            break
        found = inside.get(used[place].rstrip("…,.:"))
        if found is None:
            return [f"no command {used[place]}"]
        command, place = found, place + 1
    known = {"--help", "--install-completion"}
    known |= {one for option in command.params for one in (*option.opts, *option.secondary_opts)}
    asked = (one for one in used[place:] if re.match("--[a-z]", one))
    return [f"{command.name} has no {one}" for one in asked if one not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_command_and_option_that_is_shown_exists(page: Path) -> None:
    found = [(words, problems(words)) for words in commands(page)]
    assert [(" ".join(words), wrong) for words, wrong in found if wrong] == []


def test_the_readme_shows_many_commands() -> None:
    assert len(list(commands(ROOT / "README.md"))) > 30


def test_a_command_that_is_none_is_noticed() -> None:
    assert problems(["submitt", "MODEL"])
    assert problems(["submit", "MODEL", "--ration", "0.3"])
    assert problems(["sweeps", "make"])
    assert problems(["submit", "MODEL", "--ratio", "0.3"]) == []


def test_every_setting_that_is_named_is_one() -> None:
    known = {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS
    for page in PAGES:
        named = set(re.findall(r"INTRASLICE_[A-Z][A-Z0-9_]*[A-Z0-9]", page.read_text("utf-8")))
        assert named - known == set(), page


def test_requests_that_are_shown_are_valid() -> None:
    sent = _SENT.findall(README)
    assert {kind for kind, _ in sent} == set(_MODELS)
    for kind, body in sent:
        whole = body.replace("9f86…", "9f86" * 16)
        _MODELS[kind].model_validate(json.loads(whole))


def test_what_python_blocks_import_and_call_is_there() -> None:
    blocks = [textwrap.dedent(one) for one in _INDENTED.findall(README)]
    programs = [one for one in blocks if re.match(r"\s*from \S+ import", one)]
    assert len(programs) >= 2
    for program in programs:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name
