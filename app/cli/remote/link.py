"""Options that name the service, and the exit codes of its errors."""

from __future__ import annotations

import time
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
from app.cli.panels import SERVICE
from app.cli.remote.configuration import DEFAULT_URL, Connection, resolve

if TYPE_CHECKING:
    import httpx

    from intraslice_client import Client, ClientError, UnauthorizedError

DEFAULT_TIMEOUT = 10.0
_LONG_READ = 60.0
"""Seconds between two parts of a response that takes long: streams, uploads and downloads."""
_LEAST_SECONDS = 0.5
"""Time that the last attempt of a request is left, so that the wait ends soon after the timeout."""
_SHOWN_KEY_CHARACTERS = 4


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
    def client(self, *, is_long: bool = False) -> Iterator[Client]:
        """Open a client; print its errors as one line and exit with their code.

        Args:
            is_long: True for commands whose responses may take longer than the timeout: streams,
                uploads and downloads. The service has to answer a first request in time; later
                it may be away for half a minute, as while it is restarted.
        """
        with paused_collector():
            import httpx

            from intraslice_client import Client, ClientError

        timeout: float = self.values["timeout"]
        waited: float | None = timeout
        with reported_errors():
            connection = self.connection()
            try:
                http = _http(connection, timeout)
                with Client(connection.url, patience=timeout, http=http) as client:
                    if not is_long:
                        yield client
                        return
                    client.service()
                waited = None
                http = _http(connection, timeout, is_long=True)
                with Client(connection.url, http=http) as client:
                    yield client
            except ClientError as error:
                _exit_with(error, connection, waited)
            except httpx.InvalidURL as error:
                _fail(f"the URL {connection.url!r} is invalid: {error}", ExitCode.BAD_INPUT)
            except httpx.HTTPError as error:
                _fail(f"{connection.url}: {error or type(error).__name__}", ExitCode.FAILED)
            except OSError as error:
                # A local file: the client translates the errors of its connections.
                _fail(str(error), ExitCode.FAILED)


def _http(connection: Connection, timeout: float, *, is_long: bool = False) -> httpx.Client:
    """Return an HTTP client; unless they are long, its requests end by the timeout."""
    import httpx

    key = connection.api_key
    limits = _Deadline(timeout)
    return httpx.Client(
        base_url=connection.url,
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=httpx.Timeout(_LONG_READ, connect=timeout),
        event_hooks={} if is_long else {"request": [limits.limit], "response": [limits.reset]},
    )


class _Deadline:
    """Time limit of a request with all its repetitions; it starts anew after each response."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def limit(self, request: httpx.Request) -> None:
        """Limit an attempt to the remaining time."""
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._seconds
        left = max(self._end - now, _LEAST_SECONDS)
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), left)

    def reset(self, response: httpx.Response) -> None:
        """Start anew for the next request, unless this one is repeated."""
        if not response.is_error:
            self._end = None


def _fail(message: str, code: ExitCode) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _exit_with(error: ClientError, connection: Connection, waited: float | None) -> NoReturn:
    from intraslice_client import StoreUnreachableError, UnauthorizedError, UnreachableError

    message = str(error)
    if isinstance(error, UnauthorizedError):
        message = _unauthorized(error, connection)
    if isinstance(error, UnreachableError) and not isinstance(error, StoreUnreachableError):
        message = _unreachable(error, connection, waited)
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(_exit_code(error)) from error


def _unauthorized(error: UnauthorizedError, connection: Connection) -> str:
    """Return the message about a missing or a wrong key."""
    if connection.api_key is None:
        return (
            f"{connection.url} requires an API key, and none is set: set INTRASLICE_API_KEY, name "
            "a file with --api-key-file, or add api_key to the config file"
        )
    shown = f"{connection.api_key[:_SHOWN_KEY_CHARACTERS]}…"
    detail = error.problem.get("detail") or "the service does not accept it"
    return f"invalid API key {shown} (from: {connection.api_key_from}): {detail}"


def _unreachable(error: ClientError, connection: Connection, waited: float | None) -> str:
    """Return the message about a service that does not answer.

    Args:
        error: error of the client.
        connection: URL and its origin.
        waited: seconds for which the service was tried, if it was tried repeatedly.
    """
    import httpx

    cause = error.__cause__
    lines = str(cause or "").splitlines()
    reason = (lines[0] if lines else type(cause or error).__name__).rstrip(".")
    is_tried = isinstance(cause, httpx.TimeoutException | httpx.NetworkError)
    within = f" within {waited:g} s" if waited is not None and is_tried else ""
    return (
        f"no service answers at {connection.url}{within}: {reason}; the URL is from: "
        f"{connection.url_from}"
    )


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
                    help="URL of the service.",
                    show_default=f"INTRASLICE_URL, else the config file, else {DEFAULT_URL}",
                    rich_help_panel=SERVICE,
                ),
            ],
            None,
        ),
        "api_key_file": (
            Annotated[
                Path | None,
                typer.Option(
                    help="File with the API key in its first line.",
                    show_default="INTRASLICE_API_KEY, else the config file",
                    rich_help_panel=SERVICE,
                ),
            ],
            None,
        ),
        "profile": (
            Annotated[
                str | None,
                typer.Option(
                    help="Profile of the config file.",
                    show_default="INTRASLICE_PROFILE, else none",
                    rich_help_panel=SERVICE,
                ),
            ],
            None,
        ),
        "timeout": (
            Annotated[
                float,
                typer.Option(
                    min=0.1,
                    max=3600.0,
                    metavar="SECONDS",
                    help="Longest wait for an answer of the service, with all repetitions, in "
                    "seconds (0.1 to 3600).",
                    rich_help_panel=SERVICE,
                ),
            ],
            DEFAULT_TIMEOUT,
        ),
        "as_json": (
            Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")],
            False,
        ),
    },
    _collect,
)
"""Decorator that replaces the argument `link` of a command by the service options."""
