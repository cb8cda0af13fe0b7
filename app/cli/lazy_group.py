"""Commands that are imported when they are used, and extras that they need.

`intraslice list` must not import torch or the server, and must work where they are not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, NoReturn

import typer
import typer.main
from typer.core import TyperCommand

from app.cli.collector import paused_collector
from app.cli.exit_codes import ExitCode
from app.cli.panels import CommandLine
from app.cli.sections import SectionedGroup

OWN_PACKAGES = ("app", "intraslice_client", "intraslice_core", "migrations", "workers")
_EXTRA_NAMES = {"engine": "the engine", "server": "the server", "all": "the engine and the server"}


@dataclass(frozen=True)
class LazyCommand:
    """A command, the module whose `register` adds it, and the extra that it needs."""

    module: str
    extra: str | None = None
    requires: tuple[str, ...] = ()
    """Modules of the extra that must be installed before the command starts."""

    def missing(self) -> str | None:
        """Return the first required module that is not installed."""
        return next((name for name in self.requires if find_spec(name) is None), None)


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name; reading one imports its module."""

    def __init__(self, table: dict[str, LazyCommand]) -> None:
        self._table = table
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._table[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class LazyGroup(SectionedGroup):
    """A group whose commands are imported on use."""

    table: ClassVar[dict[str, LazyCommand]] = {}

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.commands = LazyCommands(self.table)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands in the order of the table."""
        del ctx
        return list(self.table)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report a module of an extra that is not installed."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            entry = self.table.get(name)
            if entry is None or not _is_missing_extra(error, entry):
                raise
            _fail(name, entry, error.name)


def _load(name: str, entry: LazyCommand) -> Any:
    """Import the command's module; without its extra return a command that reports that."""
    try:
        parent = CommandLine(rich_markup_mode=None)
        with paused_collector():
            module = importlib.import_module(entry.module)
        module.register(parent)
        command = typer.main.get_group(parent).commands[name]
    except ModuleNotFoundError as error:
        if not _is_missing_extra(error, entry):
            raise
        return _unavailable(name, entry, error.name, None)
    missing = entry.missing()
    return command if missing is None else _unavailable(name, entry, missing, command)


def _unavailable(name: str, entry: LazyCommand, module: str | None, command: Any) -> TyperCommand:
    """Return a command that accepts any arguments and reports the missing extra."""
    summary = command.help if command is not None else "Not available in this installation."
    return TyperCommand(
        name=name,
        callback=lambda: _fail(name, entry, module),
        help=f"{summary}\n\n{_reason(name, entry, module)}",
        short_help=f"Needs {_needs(entry)}: pip install {_package(entry)}",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        rich_markup_mode=None,
    )


def _fail(name: str, entry: LazyCommand, module: str | None) -> NoReturn:
    typer.echo(f"error: {_reason(name, entry, module)}", err=True)
    raise typer.Exit(ExitCode.BAD_INPUT)


def _reason(name: str, entry: LazyCommand, module: str | None) -> str:
    return (
        f"`intraslice {name}` needs {_needs(entry)} (module {module} is not installed): "
        f"pip install {_package(entry)}"
    )


def _needs(entry: LazyCommand) -> str:
    return _EXTRA_NAMES[entry.extra or ""]


def _package(entry: LazyCommand) -> str:
    return f"'intraslice[{entry.extra}]'"


def _is_missing_extra(error: ModuleNotFoundError, entry: LazyCommand) -> bool:
    """Return True if the module can come from the command's extra; else it is a defect."""
    package = (error.name or "").partition(".")[0]
    return entry.extra is not None and package not in OWN_PACKAGES
