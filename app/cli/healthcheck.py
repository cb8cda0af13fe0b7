"""`intraslice healthcheck`: the health check of containers, right for whatever process they run.

It imports neither the server nor the engine, because it starts every few seconds.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from app.adapters.process_state import ProcessState

_API_SECONDS = 5.0
_MAX_AGE_SECONDS = 30.0


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(healthcheck)


def healthcheck(
    ready: Annotated[
        bool,
        typer.Option(
            "--ready", help="Ask the API for /readyz (database, queue and store) not /livez."
        ),
    ] = False,
    max_age: Annotated[
        float,
        typer.Option(
            min=0.1, help="Largest age of a worker's or scheduler's heartbeat (seconds, >= 0.1)."
        ),
    ] = _MAX_AGE_SECONDS,
) -> None:
    """Check the service's processes on this machine; exit with 1 unless all are healthy."""
    from app.adapters.process_state import process_states
    from app.cli.service import process_settings

    data_dir = process_settings().data_dir
    states = process_states(data_dir)
    if not states:
        typer.echo(
            f"error: no running process of IntraSlice has its state in {data_dir}: start one, or"
            " set INTRASLICE_DATA_DIR to its data directory",
            err=True,
        )
        raise typer.Exit(1)
    problems = [(state, _problem(state, ready=ready, max_age=max_age)) for state in states]
    for state, problem in problems:
        typer.echo(f"{state.command} (process {state.pid}): {problem or 'healthy'}")
    if any(problem for _, problem in problems):
        raise typer.Exit(1)


def _problem(state: ProcessState, *, ready: bool, max_age: float) -> str | None:
    """Return what is wrong with the process; None if nothing is."""
    if not state.is_running:
        return "is not running"
    if state.command == "serve":
        return _api_problem(state.url, "/readyz" if ready else "/livez")
    # Migrations have no heartbeat: they end by themselves.
    if state.command != "migrate" and state.heartbeat_age > max_age:
        return f"the last heartbeat was {state.heartbeat_age:.0f} s ago, more than {max_age:g} s"
    return None


def _api_problem(url: str, path: str) -> str | None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=_API_SECONDS
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{url}{path} does not answer: {error or type(error).__name__}"
    finally:
        connection.close()
    if response.status == http.client.OK:
        return None
    return f"{url}{path} answered {response.status}: {body[:1000]}"
