"""The `intraslice` command."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from app.cli import (
    compress,
    evaluate,
    generate,
    hand_off,
    keys,
    recover,
    report,
    service,
    sweep,
    verify,
)
from app.cli.remote import config, jobs, sweeps, webhooks
from app.cli.sections import SectionedGroup
from intraslice_core import __version__

app = typer.Typer(
    help="Structured compression of large language models, as a command and as a service.",
    cls=SectionedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # brackets in help texts are literal
    pretty_exceptions_enable=False,  # a traceback goes to a log file, not to a wide terminal
)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"intraslice {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None: ...


_REMOTE = (jobs, sweeps, webhooks, config)
_ENGINE = (compress, recover, evaluate, generate, sweep)
for commands in (*_ENGINE, report, verify, hand_off, *_REMOTE, service, keys):
    commands.register(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
