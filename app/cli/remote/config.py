"""`intraslice config`: the service and API key in effect, and their origin."""

from __future__ import annotations

import json

import typer

from app.cli.errors import reported_errors
from app.cli.panels import ON_A_SERVICE, CommandLine
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.tables import print_table

commands = CommandLine(
    help="Show which service and API key the commands use.", no_args_is_help=True
)
_SHOWN_KEY_CHARACTERS = 4


def register(app: typer.Typer) -> None:
    """Add `config` to the command line."""
    app.add_typer(commands, name="config", rich_help_panel=ON_A_SERVICE)


@commands.command()
@takes_service_options
def show(*, link: Link) -> None:
    """Show the service URL and the first characters of the API key, and where they come from."""
    with reported_errors():
        connection = link.connection()
    key = f"{connection.api_key[:_SHOWN_KEY_CHARACTERS]}…" if connection.api_key else "none"
    rows = (("url", connection.url, connection.url_from), ("api key", key, connection.api_key_from))
    if link.as_json:
        typer.echo(
            json.dumps(
                {name: {"value": value, "from": origin} for name, value, origin in rows}, indent=2
            )
        )
    else:
        print_table(("", "value", "from"), rows)
