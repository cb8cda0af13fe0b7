"""Panels of options in the help of a command, without Rich markup, which would hide brackets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

MODEL = "Model"
AMOUNT = "Amount"
CALIBRATION = "Calibration"
EVALUATION = "Evaluation"
OUTPUT = "Output"
JOB = "Job"
ADVANCED = "Advanced"
RECOVERY = "Recovery fine-tuning"
SERVICE = "Service"
ON_A_SERVICE = "Commands on a service"
"""Panel of commands in the list of all commands."""
_ARGUMENTS = "Arguments"
_OPTIONS = "Options"
_ORDER = (
    *(_ARGUMENTS, MODEL, AMOUNT, CALIBRATION, EVALUATION, OUTPUT, JOB, ADVANCED, RECOVERY),
    *(SERVICE, _OPTIONS),
)

Function = TypeVar("Function", bound=Callable[..., Any])


class SectionedCommand(TyperCommand):
    """A command whose plain help lists arguments and options under the titles of their panels.

    Without Rich markup, typer ignores `rich_help_panel`.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel, in the order of all commands."""
        for title, records in help_sections(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


def help_sections(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return names and help of a command's arguments and options by panel, in the panels' order."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            sections.setdefault(_panel(parameter), []).append(record)
    return {title: sections[title] for title in sorted(sections, key=_ORDER.index)}


def _panel(parameter: Any) -> str:
    """Return the panel of a parameter; the default depends on its kind."""
    default = _ARGUMENTS if parameter.param_type_name == "argument" else _OPTIONS
    return getattr(parameter, "rich_help_panel", None) or default


class CommandLine(typer.Typer):
    """A group of commands whose options are listed by panel."""

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[Function], Function]:
        """Return the decorator that adds a command."""
        return super().command(name, cls=cls or SectionedCommand, **settings)
