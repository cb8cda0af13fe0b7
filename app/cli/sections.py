"""Layout of the list of commands in the help."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class SectionedGroup(TyperGroup):
    """A group of commands whose plain help lists them under the titles of their panels.

    Without Rich markup, typer ignores `rich_help_panel` and truncates the commands' summaries.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel, with the first sentence of each command's help."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                title = getattr(command, "rich_help_panel", None) or "Commands"
                summary = command.get_short_help_str(limit=1000)
                sections.setdefault(title, []).append((name, summary))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
