"""The `intraslice` command."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.lazy_group import LazyCommand, LazyGroup

_ENGINE = ("torch", "transformers", "safetensors", "datasets")
_SERVER = ("fastapi", "sqlalchemy", "celery", "obstore")

_hand_off = LazyCommand("app.cli.registry_hand_off", "engine")
_jobs = LazyCommand("app.cli.remote.jobs")
_submission = LazyCommand("app.cli.remote.submission")
_service = LazyCommand("app.cli.service", "server", _SERVER)
_service_with_engine = LazyCommand("app.cli.service", "all", _SERVER + _ENGINE)


class _Commands(LazyGroup):
    table = {  # noqa: RUF012 (declared as ClassVar in the base class)
        "compress": LazyCommand("app.cli.compress", "engine", _ENGINE),
        "recover": LazyCommand("app.cli.recover", "engine", _ENGINE),
        "evaluate": LazyCommand("app.cli.evaluate", "engine", _ENGINE),
        "generate": LazyCommand("app.cli.generate", "engine", _ENGINE),
        "sweep": LazyCommand("app.cli.sweep", "engine", _ENGINE),
        "bench": LazyCommand("app.cli.bench", "engine", (*_ENGINE, "jinja2", "markupsafe")),
        "report": LazyCommand("app.cli.report", "engine", ("jinja2", "markupsafe")),
        "verify": LazyCommand("app.cli.verify"),
        "register": _hand_off,
        "push": LazyCommand("app.cli.registry_hand_off", "engine", ("huggingface_hub",)),
        "submit": _submission,
        "validate": _submission,
        "show": _jobs,
        "watch": _jobs,
        "edit": _jobs,
        "cancel": _jobs,
        "pause": _jobs,
        "resume": _jobs,
        "retry": _jobs,
        "delete": _jobs,
        "download": _jobs,
        "list": _jobs,
        "logs": _jobs,
        "compare": _jobs,
        "prompt": LazyCommand("app.cli.remote.prompt"),
        "sweeps": LazyCommand("app.cli.remote.sweeps"),
        "webhooks": LazyCommand("app.cli.remote.webhooks"),
        "service": LazyCommand("app.cli.remote.service"),
        "config": LazyCommand("app.cli.remote.config"),
        "up": _service_with_engine,
        "serve": _service,
        "worker": _service_with_engine,
        "scheduler": _service,
        "maintenance": LazyCommand("app.cli.maintenance", "server", _SERVER),
        "migrate": LazyCommand("app.cli.migrate", "server", _SERVER),
        "healthcheck": LazyCommand("app.cli.healthcheck"),
        # Needs the server only where it talks to the database instead of a service.
        "keys": LazyCommand("app.cli.keys", "server"),
    }


app = typer.Typer(
    cls=_Commands,
    help="Compress large language models, on this machine or on a service.",
    no_args_is_help=True,
    rich_markup_mode=None,  # markup would hide [eval], [@REVISION] and [default: …] in help texts
    pretty_exceptions_enable=False,  # tracebacks go to log files, not to a wide terminal
)


def _print_version(requested: bool) -> None:
    from intraslice_core import __version__

    if requested:
        typer.echo(f"intraslice {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None: ...


def main() -> None:
    app()


if __name__ == "__main__":
    main()
