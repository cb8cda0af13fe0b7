"""One error, one line, one exit code: 2 for bad input, 1 for a failure, 130 for Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from intraslice_core.errors import (
    CalibrationError,
    CompressionCancelledError,
    ConfigurationError,
    IntraSliceError,
    ModelError,
    OutputExistsError,
)

BAD_INPUT = (ConfigurationError, ModelError, CalibrationError, OutputExistsError)


@contextmanager
def explained() -> Iterator[None]:
    """Show an engine error as a line and leave with its exit code."""
    try:
        yield
    except (CompressionCancelledError, KeyboardInterrupt):
        typer.echo("cancelled; nothing was left behind", err=True)
        raise typer.Exit(130) from None
    except IntraSliceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, BAD_INPUT) else 1) from None


@contextmanager
def refuse_settings() -> Iterator[None]:
    """Turn a validation failure into a configuration error that names the option."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        # Fields nest (`calibration.samples`), options do not.
        names = [part for part in first["loc"] if isinstance(part, str)]
        nested = "calibration" if "source" in names else names[-1]
        option = nested.replace("_", "-")
        raise ConfigurationError(first["msg"], field=f"--{option}") from error
