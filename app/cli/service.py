"""Service commands of `intraslice`: everything on one machine, or one production process."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

_GRACEFUL_SECONDS = 5
_errors = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the service's commands to the command line."""
    app.command()(up)
    app.command()(serve)
    app.command()(worker)
    app.command()(migrate)


def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Database, queue and artifacts live here.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.")] = 8000,
) -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    from app.embedded.errors import EmbeddedError
    from app.embedded.stack import Stack, StackOptions, is_loopback
    from app.settings import Settings

    if not is_loopback(host) and not os.environ.get("INTRASLICE_API_KEY"):
        _refuse(f"{host} is open to others: set INTRASLICE_API_KEY, or listen on 127.0.0.1")
    stop_requested = _stop_on_signals()
    options = StackOptions(data_dir=data_dir or Settings().data_dir, host=host, port=port)
    try:
        with Stack(options, say=_errors.print) as stack:
            stack.start(stop_requested)
            if not stop_requested():
                _announce(stack.url, options.data_dir)
            stack.run(stop_requested)
            _errors.print("Stopping …")
    except EmbeddedError as error:
        _refuse(str(error))


def serve(
    descriptor: Annotated[
        int | None, typer.Option(help="Serve on this inherited, bound socket.", hidden=True)
    ] = None,
) -> None:
    """Run the HTTP API; settings come from INTRASLICE_* variables."""
    import uvicorn

    from app.settings import Settings

    settings = Settings()
    config = uvicorn.Config(
        "app.main:app_factory",
        factory=True,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    inherited = [socket.socket(fileno=descriptor)] if descriptor is not None else None
    uvicorn.Server(config).run(sockets=inherited)


def worker() -> None:
    """Run one worker; settings come from INTRASLICE_* variables."""
    from workers.main import run_worker

    from app.settings import Settings

    run_worker(Settings())


def migrate() -> None:
    """Bring the database to this version's schema."""
    from app.adapters.database.migrate import upgrade
    from app.settings import Settings

    upgrade(Settings())


def _announce(url: str, data_dir: Path) -> None:
    out = Console()
    out.print("[bold]IntraSlice is ready.[/bold]  Ctrl-C stops it.")
    out.print(f"  dashboard  {url}/", highlight=False)
    out.print(f"  API        {url}/v1", highlight=False)
    out.print(f"  reference  {url}/docs", highlight=False)
    out.print(f"  data       {data_dir.resolve()}", highlight=False, soft_wrap=True)


def _stop_on_signals() -> Callable[[], bool]:
    """Turn Ctrl-C and SIGTERM into a question, so that no step is broken off half-way."""
    received: list[int] = []

    def note(signal_number: int, _frame: FrameType | None) -> None:
        received.append(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return lambda: bool(received)


def _refuse(message: str) -> None:
    _errors.print(f"[red]error:[/red] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
