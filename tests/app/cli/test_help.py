"""The help of every command shows its declared texts completely, brackets included."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from app.cli.main import app

REPOSITORY = Path(__file__).parents[3]
ENGINE_AND_SERVER = (
    *("torch", "transformers", "datasets", "numpy", "jinja2", "cryptography"),
    *("sqlalchemy", "celery", "kombu", "psycopg", "redis", "obstore", "fastapi", "uvicorn"),
)
_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


def visible_options(command: Any) -> list[Any]:
    return [option for option in command.params if not getattr(option, "hidden", False)]


def declared_texts(command: Any) -> Iterator[str]:
    """Yield the help texts, metavars and textual defaults of a command."""
    yield command.help or ""
    yield command.epilog or ""
    for option in visible_options(command):
        yield getattr(option, "help", None) or ""
        yield option.metavar or ""
        if isinstance(getattr(option, "show_default", None), str):
            yield f"[default: ({option.show_default})"


def without_spaces(text: str) -> str:
    """Remove line breaks and indentation, which depend on the width."""
    return "".join(text.split())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: "-".join(path) or "intraslice")
def test_help_shows_all_declared_texts(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    shown = without_spaces(result.output)
    for text in declared_texts(COMMANDS[path]):
        for bracketed in _BRACKETS.findall(text):
            assert without_spaces(bracketed) in shown, bracketed
        assert without_spaces(text) in shown, text


def test_the_help_texts_contain_brackets() -> None:
    """Require brackets, without which the test above would prove nothing about markup."""
    texts = [text for command in COMMANDS.values() for text in declared_texts(command)]
    bracketed = {match for text in texts for match in _BRACKETS.findall(text)}
    assert {"[eval]", "[@REVISION]", "[:CONFIG]", "[@SPLIT]", "[=WEIGHT]"} <= bracketed


def test_every_command_and_option_has_a_sentence_of_help() -> None:
    for path, command in COMMANDS.items():
        assert re.match(r"[A-Z].*\.", command.help or "", re.S), path
        for option in visible_options(command):
            text = getattr(option, "help", None) or ""
            assert re.match(r"\S.*[.…\]]$", text, re.S), (path, option.name)


def test_groups_list_their_commands_by_panel_with_the_first_sentence() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    assert output.index("Commands:") < output.index("Commands on a service:")
    shown = without_spaces(output)
    for (name,) in (path for path in COMMANDS if len(path) == 1):
        summary = (COMMANDS[name,].help or "").split("\n\n")[0].partition(". ")[0]
        assert without_spaces(f"{name} {summary}") in shown


PANELS = ("Model:", "Amount:", "Calibration:", "Evaluation:", "Output:", "Advanced:")


@pytest.mark.parametrize("command", ["compress", "submit", "validate", "sweep"])
def test_options_are_listed_in_panels_in_one_order(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    places = [shown.index(f"\n{panel}\n") for panel in PANELS]
    assert places == sorted(places)
    *_, options = shown.partition("\nOptions:\n")
    others = [line.split()[0] for line in options.splitlines() if line.startswith("  --")]
    assert others in (["--help"], ["--json", "--help"])


def test_every_setting_has_a_panel() -> None:
    for path in (("compress",), ("sweep",), ("bench",), ("submit",), ("evaluate",), ("recover",)):
        for option in visible_options(COMMANDS[path]):
            if option.name not in ("help", "as_json"):
                assert getattr(option, "rich_help_panel", None), (path, option.name)


def test_parsing_the_command_line_imports_neither_engine_nor_server() -> None:
    """The remote commands run without these packages."""
    code = f"import sys, app.cli.main; print([m for m in {ENGINE_AND_SERVER} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("paper", "method 'paper' is now called 'intraslice'"),
        ("papers", "'papers' is not one of intraslice_plus, intraslice, magnitude"),
    ],
)
def test_an_unknown_method_is_rejected_with_the_names_to_write(method: str, message: str) -> None:
    for command in (["compress", "m", "--out", "o"], ["submit", "m"]):
        result = CliRunner().invoke(app, [*command, "--method", method])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
