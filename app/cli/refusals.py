"""One error, one line, one exit code: 2 for bad input, 1 for a failure, 130 for Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from app.domain.errors import ServiceError
from intraslice_core.errors import (
    CalibrationError,
    CompressionCancelledError,
    ConfigurationError,
    IntraSliceError,
    ModelError,
    OutputExistsError,
    TaskError,
)

BAD_INPUT = (ConfigurationError, ModelError, CalibrationError, TaskError, OutputExistsError)

_OPTIONS = {
    "source": "calibration",
    "tasks": "tasks",
    "task_limit": "limit",
    "speed_grid": "speed-grid",
}
"""Of fields that are called otherwise, or whose parts are no options of their own."""


@contextmanager
def explained() -> Iterator[None]:
    """Show an expected error as a line and leave with its exit code."""
    try:
        yield
    except (CompressionCancelledError, KeyboardInterrupt):
        typer.echo("cancelled; nothing was left behind", err=True)
        raise typer.Exit(130) from None
    except IntraSliceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, BAD_INPUT) else 1) from None
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def refuse_settings() -> Iterator[None]:
    """Turn a validation failure into a configuration error that names the option."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(first["msg"], field=f"--{_option(first['loc'])}") from error


def _option(place: tuple[int | str, ...]) -> str:
    """Fields nest (`calibration.samples`), options do not."""
    names = [name for name in place if isinstance(name, str)]
    known = [_OPTIONS[name] for name in names if name in _OPTIONS]
    return known[0] if known else names[-1].replace("_", "-")
