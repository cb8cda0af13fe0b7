"""Commands are imported on use and report the extra that they miss."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from app.cli import lazy_group
from app.cli.main import _Commands, app

TABLE = _Commands.table
MODULES = sorted({entry.module for entry in TABLE.values()})


@pytest.mark.parametrize("module", MODULES)
def test_table_lists_every_command_of_a_module(module: str) -> None:
    parent = typer.Typer()
    importlib.import_module(module).register(parent)
    listed = {name for name, entry in TABLE.items() if entry.module == module}
    assert set(typer.main.get_group(parent).commands) == listed


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        ("compress", "torch", "engine"),
        ("sweep", "datasets", "engine"),
        ("report", "jinja2", "engine"),
        ("push", "huggingface_hub", "engine"),
        ("serve", "fastapi", "server"),
        ("migrate", "sqlalchemy", "server"),
        ("up", "torch", "all"),
        ("worker", "celery", "all"),
    ],
)
def test_a_command_without_its_extra_names_it(
    command: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lazy_group.find_spec
    monkeypatch.setattr(
        lazy_group, "find_spec", lambda name: None if name == missing else real(name)
    )
    ended = CliRunner().invoke(app, [command, "model", "--option", "value"])
    assert ended.exit_code == 2
    assert f"`intraslice {command}` needs the " in ended.stderr
    assert f"(module {missing} is not installed): pip install 'intraslice[{extra}]'" in ended.stderr
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"intraslice[{extra}]" in shown.stdout
    assert f"intraslice[{extra}]" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_module_that_cannot_be_imported_without_its_extra_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name}", name="markupsafe")

    monkeypatch.setattr(lazy_group.importlib, "import_module", fail)
    ended = CliRunner().invoke(app, ["compress"])
    assert ended.exit_code == 2
    assert "module markupsafe is not installed" in ended.stderr


def test_a_missing_module_of_a_running_command_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.services.keys", None)  # makes its import fail
    monkeypatch.setattr(lazy_group, "OWN_PACKAGES", ())
    for name in ("URL", "PROFILE", "CONFIG"):
        monkeypatch.delenv(f"INTRASLICE_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    ended = CliRunner().invoke(app, ["keys", "list"])
    assert ended.exit_code == 2
    assert "`intraslice keys` needs the server" in ended.stderr


def test_a_missing_module_of_this_distribution_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.cli.verify", None)
    ended = CliRunner().invoke(app, ["verify", "."])
    assert isinstance(ended.exception, ModuleNotFoundError)


def test_help_shows_text_in_brackets() -> None:
    shown = " ".join(CliRunner().invoke(app, ["compress", "--help"]).stdout.split())
    assert "[eval]" in shown
    assert "[@REVISION]" in shown
    assert "[default: " in shown


def test_commands_are_listed_by_panel_and_typos_get_suggestions() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert shown.index("\nCommands:") < shown.index("\nCommands on a service:")
    ended = CliRunner().invoke(app, ["lst"])
    assert "Did you mean 'list'?" in ended.stderr


def test_a_remote_command_loads_neither_engine_nor_server() -> None:
    code = (
        "import sys\n"
        "from app.cli.main import app\n"
        "try:\n"
        "    app(['list', '--url', 'http://127.0.0.1:1', '--timeout', '0.2'])\n"
        "except SystemExit as end:\n"
        "    print(end.code)\n"
        "print(*(name for name in ('torch', 'transformers', 'fastapi', 'sqlalchemy', 'celery', "
        "'jinja2', 'app.cli.engine') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout == "5\n\n"
