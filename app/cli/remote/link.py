"""Options that name the service, and the exit codes of its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.cli.collector import paused_collector
from app.cli.errors import reported_errors
from app.cli.exit_codes import ExitCode
from app.cli.option_groups import with_options
from app.cli.remote.configuration import DEFAULT_URL, Connection, resolve

if TYPE_CHECKING:
    from intraslice_client import Client, ClientError

_PANEL = "Service"


@dataclass(frozen=True, kw_only=True)
class Link:
    """The service options of a command."""

    values: dict[str, Any]

    @property
    def as_json(self) -> bool:
        """True if the output must be JSON."""
        return bool(self.values["as_json"])

    def connection(self) -> Connection:
        """Return the URL and the API key in effect.

        Raises:
            ConfigurationError: if a file is missing or invalid.
        """
        values = self.values
        return resolve(values["url"], values["api_key_file"], values["profile"])

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Open a client; print its errors as one line and exit with their code."""
        with paused_collector():
            import httpx

            from intraslice_client import Client, ClientError

        with reported_errors():
            connection = self.connection()
            try:
                with Client(connection.url, connection.api_key) as client:
                    yield client
            except ClientError as error:
                _exit_with(error, connection)
            except httpx.InvalidURL as error:
                _fail(f"the URL {connection.url!r} is invalid: {error}", ExitCode.BAD_INPUT)
            except httpx.HTTPError as error:
                _fail(f"{connection.url}: {error or type(error).__name__}", ExitCode.FAILED)
            except OSError as error:
                # A local file: the client translates the errors of its connections.
                _fail(str(error), ExitCode.FAILED)


def _fail(message: str, code: ExitCode) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _exit_with(error: ClientError, connection: Connection) -> NoReturn:
    from intraslice_client import StoreUnreachableError, UnauthorizedError, UnreachableError

    typer.echo(f"error: {error}", err=True)
    if isinstance(error, UnauthorizedError):
        typer.echo(f"origin of the API key: {connection.api_key_from}", err=True)
    if isinstance(error, UnreachableError) and not isinstance(error, StoreUnreachableError):
        typer.echo(f"origin of the URL {connection.url}: {connection.url_from}", err=True)
    raise typer.Exit(_exit_code(error)) from error


def _exit_code(error: ClientError) -> ExitCode:
    import intraslice_client as client

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
    return next(
        (code for error_type, code in codes if isinstance(error, error_type)), ExitCode.FAILED
    )


def _collect(values: dict[str, Any]) -> Link:
    return Link(values=values)


takes_service_options = with_options(
    "link",
    {
        "url": (
            Annotated[
                str | None,
                typer.Option(
                    help="URL of the service.  [default: INTRASLICE_URL, else the config file, "
                    f"else {DEFAULT_URL}]",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        "api_key_file": (
            Annotated[
                Path | None,
                typer.Option(
                    help="File with the API key in its first line.  [default: "
                    "INTRASLICE_API_KEY, else the config file]",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        "profile": (
            Annotated[
                str | None,
                typer.Option(
                    help="Profile of the config file.  [default: INTRASLICE_PROFILE, else none]",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        "as_json": (
            Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")],
            False,
        ),
    },
    _collect,
)
"""Decorator that replaces the argument `link` of a command by the service options."""
