"""The options of commands that speak to a service, and what becomes of its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.exit_codes import ExitCode
from app.cli.option_groups import with_options
from app.cli.refusals import explained
from app.cli.remote.configuration import Connection, resolve

if TYPE_CHECKING:
    from app.client import Client, ClientError

_PANEL = "Service"


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a command was told about the service."""

    values: dict[str, Any]

    @property
    def as_json(self) -> bool:
        """Whether a script reads what is printed."""
        return bool(self.values["as_json"])

    def connection(self) -> Connection:
        """Which service is meant.

        Raises:
            ConfigurationError: if a file cannot be used.
        """
        said = self.values
        return resolve(said["url"], said["api_key_file"], said["profile"])

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The service; what it refuses is a line and an exit code."""
        from app.client import Client, ClientError

        with explained():
            connection = self.connection()
            try:
                with Client(connection.url, connection.api_key) as client:
                    yield client
            except ClientError as error:
                _refuse(error, connection)


def _refuse(error: ClientError, connection: Connection) -> None:
    from app.client import UnauthorizedError, UnreachableError

    typer.echo(f"error: {error}", err=True)
    if isinstance(error, UnauthorizedError):
        typer.echo(f"the key is from: {connection.api_key_from}", err=True)
    if isinstance(error, UnreachableError):
        typer.echo(f"{connection.url} is from: {connection.url_from}", err=True)
    raise typer.Exit(_code(error)) from error


def _code(error: ClientError) -> ExitCode:
    from app import client

    codes: tuple[tuple[type[Exception], ExitCode], ...] = (
        (client.InvalidRequestError, ExitCode.BAD_INPUT),
        (client.UnauthorizedError, ExitCode.NOT_ALLOWED),
        (client.ForbiddenError, ExitCode.NOT_ALLOWED),
        (client.NotFoundError, ExitCode.NOT_POSSIBLE),
        (client.ConflictError, ExitCode.NOT_POSSIBLE),
        (client.RateLimitedError, ExitCode.UNAVAILABLE),
        (client.UnavailableError, ExitCode.UNAVAILABLE),
        (client.UnreachableError, ExitCode.UNAVAILABLE),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), ExitCode.FAILED)


def _collect(said: dict[str, Any]) -> Link:
    return Link(values=said)


speaks = with_options(
    "link",
    {
        "url": (
            Annotated[
                str | None,
                typer.Option(
                    help="Of the service; else INTRASLICE_URL or the config file.",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        "api_key_file": (
            Annotated[
                Path | None,
                typer.Option(
                    help="Holds the key; else INTRASLICE_API_KEY or the config file.",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        "profile": (
            Annotated[
                str | None,
                typer.Option(
                    help="Of the config file; else INTRASLICE_PROFILE.", rich_help_panel=_PANEL
                ),
            ],
            None,
        ),
        "as_json": (
            Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")],
            False,
        ),
    },
    _collect,
)
"""Gives a command the options of the service in the place of its argument `link`."""
