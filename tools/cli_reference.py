"""Reference of the command line in Markdown, made from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main

from app.cli.main import app
from app.cli.panels import help_sections

_PROGRAM = "intraslice"


def commands() -> str:
    """Return a part for each command: its help, its usage, and its options by panel."""
    root: Any = typer.main.get_command(app)
    return "\n".join(_parts(root, root.context_class(root, info_name=_PROGRAM)))


def _parts(command: Any, context: Any) -> Iterator[str]:
    yield f"\n### {context.command_path} {{ #{context.command_path.replace(' ', '-')} }}\n"
    yield _prose(inspect.cleandoc(command.help or ""))
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    yield f"\n    {usage}"
    for title, records in help_sections(command, context).items():
        rows = [record for record in records if record[0] != "--help"]
        if rows:
            yield f"\n| {title} | |\n|---|---|"
            yield from (f"| `{names}` | {_cell(text)} |" for names, text in rows)
    for name in getattr(command, "commands", ()):
        child = command.get_command(context, name)
        if not child.hidden:
            yield from _parts(child, child.context_class(child, info_name=name, parent=context))


def _prose(text: str) -> str:
    """Escape what Markdown would read as markup; keep paragraphs and code in backticks."""
    parts = text.replace("\b\n", "").split("`")
    parts[::2] = [re.sub(r"([*[])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "\\|")
