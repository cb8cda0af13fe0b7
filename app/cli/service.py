"""Service commands of `intraslice`: the whole service on one machine, or one of its processes.

The server's packages are imported when a command runs, not when the command line is parsed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from app.cli.collector import paused_collector
from app.cli.errors import reported_errors
from app.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from app.embedded.stack import StackOptions
    from app.services.resources import Resources
    from app.settings import Settings

_errors = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
_DIRECTORY_HINT = "choose a --data-dir with space that this user may write to"
_DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the database, the queue and the artifacts.",
        show_default="INTRASLICE_DATA_DIR, or else ~/.local/share/intraslice",
    ),
]
_HostOption = Annotated[
    str | None,
    typer.Option(
        help="Address to listen on; other than loopback it needs INTRASLICE_API_KEY.",
        show_default="INTRASLICE_HOST, or else 127.0.0.1",
    ),
]
_PortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Port to listen on (0 to 65535; 0 selects a free port).",
        show_default="INTRASLICE_PORT, or else 8000",
    ),
]
_S3Option = Annotated[
    bool,
    typer.Option("--s3", help="Store artifacts in an embedded S3 server instead of a directory."),
]
_ClaimStoreOption = Annotated[
    bool,
    typer.Option(
        "--claim-store",
        help="Make the artifact store this service's own, after it was emptied or replaced.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the service's commands to the command line."""
    app.command()(up)
    app.command()(serve)
    app.command()(worker)
    app.command()(scheduler)


def up(
    data_dir: _DataDirOption = None,
    host: _HostOption = None,
    port: _PortOption = None,
    s3: _S3Option = False,
    claim_store: _ClaimStoreOption = False,
) -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    from app.embedded.process import EmbeddedError
    from app.embedded.stack import Stack

    options = _stack_options(data_dir, host, port, s3=s3, claim_store=claim_store)
    stop_requested = _stop_on_signals()
    try:
        with Stack(options, report=_errors.print) as stack:
            stack.start(stop_requested)
            if not stop_requested():
                _announce(stack.url, options)
            stack.run(stop_requested)
            _errors.print("Stopping …")
    except EmbeddedError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or options.data_dir}: {error.strerror or error}; {_DIRECTORY_HINT}")


def _stack_options(
    data_dir: Path | None, host: str | None, port: int | None, *, s3: bool, claim_store: bool
) -> StackOptions:
    """Combine options and environment; without an API key, allow loopback only, unprotected."""
    from app.embedded.stack import StackOptions
    from app.settings import is_loopback

    settings = process_settings()
    print_advice(settings)
    host = settings.host if host is None else host
    if settings.api_key is None and not is_loopback(host):
        _fail(
            f"{host} is reachable from other machines: set INTRASLICE_API_KEY, or use"
            " --host 127.0.0.1"
        )
    configured = settings.auth if "auth" in settings.model_fields_set else None
    return StackOptions(
        data_dir=data_dir or settings.data_dir,
        host=host,
        port=settings.port if port is None else port,
        auth=configured or ("off" if settings.api_key is None else "on"),
        s3=s3,
        claim_store=claim_store,
    )


def serve(
    descriptor: Annotated[
        int | None,
        typer.Option(
            help="File descriptor of an inherited, bound socket to serve on.", hidden=True
        ),
    ] = None,
) -> None:
    """Run the HTTP API, configured by INTRASLICE_* variables."""
    settings = process_settings()
    with paused_collector():
        from app.server import run_server

    with reported_errors():
        run_server(settings, descriptor)


def worker() -> None:
    """Run one worker, configured by INTRASLICE_* variables."""
    with paused_collector():
        from workers.main import run_worker

    with reported_errors():
        run_worker(process_settings())


def scheduler() -> None:
    """Run the periodic tasks; several may run at once."""
    with paused_collector():
        from workers.scheduler import run_scheduler

    with reported_errors():
        run_scheduler(process_settings())


def _announce(url: str, options: StackOptions) -> None:
    out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    out.print(Text.assemble(("IntraSlice is ready.", "bold"), "  Ctrl-C stops it."))
    out.print(f"  dashboard  {url}/")
    out.print(f"  API        {url}/v1")
    out.print(f"  reference  {url}/docs")
    out.print(f"  data       {options.data_dir.resolve()}")
    if options.auth == "off":
        out.print("  access     from this machine only, without an API key")


@contextmanager
def opened_resources(settings: Settings) -> Iterator[Resources]:
    """Yield the service's resources for one command; print an expected error as one line."""
    from app.services.resources import open_resources
    from app.telemetry.outages import unreported

    with reported_errors(), unreported():
        resources = open_resources(settings)
        try:
            yield resources
        finally:
            resources.close()


def process_settings() -> Settings:
    """Return the process's settings, or print the invalid variables and exit with code 2."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from app.environment import described
    from app.settings import get_settings

    try:
        return get_settings()
    except ValidationError as error:
        for problem in error.errors():
            _errors.print(f"error: {described(problem)}")
    except SettingsError as error:
        _errors.print(f"error: {error}")
    raise typer.Exit(ExitCode.BAD_INPUT)


def print_advice(settings: Settings) -> None:
    """Print likely mistakes in the environment, for commands that write no log."""
    from app.environment import advice

    for line in advice(settings, os.environ):
        _errors.print(f"warning: {line}")


def _stop_on_signals() -> Callable[[], bool]:
    """Return a check for Ctrl-C, SIGTERM and SIGHUP, so that no step is interrupted half-way."""
    received: list[int] = []

    def note(signal_number: int, _frame: FrameType | None) -> None:
        received.append(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return lambda: bool(received)


def _fail(message: str) -> NoReturn:
    _errors.print(f"error: {message}")
    raise typer.Exit(1)
