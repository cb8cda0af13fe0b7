"""`intraslice service`: the load of a service, its workers and what they are doing."""

from __future__ import annotations

import typer

from app.cli.exit_codes import TABLE
from app.cli.panels import ON_A_SERVICE
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.tables import print_json, print_service


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=ON_A_SERVICE, epilog=TABLE)(service)


@takes_service_options
def service(*, link: Link) -> None:
    """Show the load of the service, its workers, their devices and what they are doing."""
    with link.client() as client:
        status = client.service()
    if link.as_json:
        print_json(status)
    else:
        print_service(status)
