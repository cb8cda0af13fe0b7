"""`intraslice config`: which service the commands speak to, and why."""

from __future__ import annotations

import json

import typer

from app.cli.refusals import explained
from app.cli.remote.jobs import PANEL
from app.cli.remote.link import Link, speaks
from app.cli.remote.tables import print_table

commands = typer.Typer(help="Which service is meant, and with which key.", no_args_is_help=True)
_SHOWN = 4


def register(app: typer.Typer) -> None:
    """Add `config` to the command line."""
    app.add_typer(commands, name="config", rich_help_panel=PANEL)


@commands.command()
@speaks
def show(*, link: Link) -> None:
    """Show the service and the key, and where each comes from; of the key its first letters."""
    with explained():
        found = link.connection()
    key = f"{found.api_key[:_SHOWN]}…" if found.api_key else "none"
    rows = (("url", found.url, found.url_from), ("api key", key, found.api_key_from))
    if link.as_json:
        typer.echo(json.dumps({name: {"value": v, "from": f} for name, v, f in rows}, indent=2))
    else:
        print_table(("", "value", "from"), rows)
