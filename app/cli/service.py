"""Service commands of `intraslice`: everything on one machine, or one production process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from app.cli.refusals import explained

if TYPE_CHECKING:
    from app.embedded.stack import StackOptions
    from app.settings import Settings

_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the service's commands to the command line."""
    app.command()(up)
    app.command()(serve)
    app.command()(worker)
    app.command()(scheduler)
    app.command()(migrate)


def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Database, queue and artifacts live here.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free port.")] = None,
    s3: Annotated[bool, typer.Option("--s3", help="Artifacts go to an S3 server of ours.")] = False,
) -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    from app.embedded.process import EmbeddedError
    from app.embedded.stack import Stack

    options = _stack_options(data_dir, host, port, s3=s3)
    stop_requested = _stop_on_signals()
    try:
        with Stack(options, report=_say) as stack:
            stack.start(stop_requested)
            if not stop_requested():
                _announce(stack.url, options)
            stack.run(stop_requested)
            _say("Stopping …")
    except EmbeddedError as error:
        _refuse(str(error))


def _stack_options(
    data_dir: Path | None, host: str | None, port: int | None, *, s3: bool
) -> StackOptions:
    """Options first, environment second; without a key only on loopback, and then openly."""
    from app.embedded.stack import StackOptions
    from app.settings import is_loopback

    settings = process_settings()
    host = settings.host if host is None else host
    if settings.api_key is None and not is_loopback(host):
        _refuse(f"{host} is open to others: set INTRASLICE_API_KEY, or listen on 127.0.0.1")
    asked_for = settings.auth if "auth" in settings.model_fields_set else None
    return StackOptions(
        data_dir=data_dir or settings.data_dir,
        host=host,
        port=settings.port if port is None else port,
        auth=asked_for or ("off" if settings.api_key is None else "on"),
        s3=s3,
    )


def serve(
    descriptor: Annotated[
        int | None, typer.Option(help="Serve on this inherited, bound socket.", hidden=True)
    ] = None,
) -> None:
    """Run the HTTP API; settings come from INTRASLICE_* variables."""
    settings = process_settings()
    from app.server import run_server

    run_server(settings, descriptor)


def worker() -> None:
    """Run one worker; settings come from INTRASLICE_* variables."""
    from workers.main import run_worker

    with explained():
        run_worker(process_settings())


def scheduler() -> None:
    """Run the periodic work as a process of its own; any number may run."""
    from workers.scheduler import run_scheduler

    run_scheduler(process_settings())


def migrate() -> None:
    """Bring the database to this version's schema."""
    from app.adapters.database.migrate import upgrade

    upgrade(process_settings())


def _announce(url: str, options: StackOptions) -> None:
    out = Console(highlight=False, soft_wrap=True)
    out.print("[bold]IntraSlice is ready.[/bold]  Ctrl-C stops it.")
    out.print(f"  dashboard  {url}/")
    out.print(f"  API        {url}/v1")
    out.print(f"  reference  {url}/docs")
    out.print(f"  data       {options.data_dir.resolve()}")
    if options.auth == "off":
        out.print("  access     without a key, from this machine only")


def process_settings() -> Settings:
    """The process's settings; what is wrong with them is told by variable."""
    from pydantic import ValidationError

    from app.settings import get_settings

    try:
        return get_settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            _say(f"INTRASLICE_{name}: {problem['msg']}" if name else problem["msg"])
        _refuse("the environment holds settings that cannot be used")


def _say(message: str) -> None:
    _errors.print(message, markup=False)


def _stop_on_signals() -> Callable[[], bool]:
    """Turn Ctrl-C and SIGTERM into a question, so that no step is broken off half-way."""
    received: list[int] = []

    def note(signal_number: int, _frame: FrameType | None) -> None:
        received.append(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return lambda: bool(received)


def _refuse(message: str) -> NoReturn:
    _say(f"error: {message}")
    raise typer.Exit(1)
