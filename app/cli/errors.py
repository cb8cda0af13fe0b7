"""Errors of commands: one line on stderr and an exit code of `exit_codes`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from app.cli.exit_codes import ExitCode
from app.domain.errors import ServiceError, UnavailableError
from intraslice_core.errors import (
    CalibrationError,
    CompressionCancelledError,
    ConfigurationError,
    IntraSliceError,
    ModelError,
    OutputExistsError,
    OutputInUseError,
    OutputNotWritableError,
    RankFailedError,
    TaskError,
)
from intraslice_core.launcher import is_main_process

BAD_INPUT = (
    *(ConfigurationError, ModelError, CalibrationError, TaskError),
    *(OutputExistsError, OutputInUseError, OutputNotWritableError),
)

_OPTION_BY_FIELD = {
    "source": "calibration",
    "tasks": "tasks",
    "task_limit": "limit",
    "speed_grid": "speed-grid",
}
"""Options whose names differ from their fields, and of fields with items that are no options."""


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an expected error as one line and exit with its code."""
    try:
        yield
    except (CompressionCancelledError, KeyboardInterrupt):
        typer.echo("cancelled; unfinished output was removed", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except IntraSliceError as error:
        # All processes of a launcher end with the same error, unless the first one is gone.
        if is_main_process() or isinstance(error, RankFailedError):
            typer.echo(f"error: {error}", err=True)
        code = ExitCode.BAD_INPUT if isinstance(error, BAD_INPUT) else ExitCode.FAILED
        raise typer.Exit(code) from None
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        is_away = isinstance(error, UnavailableError) and not error.rejected
        raise typer.Exit(ExitCode.UNAVAILABLE if is_away else ExitCode.FAILED) from None
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not is_full:
            raise  # a defect of ours: every expected one names a file or the disk
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror}", err=True)
        raise typer.Exit(ExitCode.FAILED if is_full else ExitCode.BAD_INPUT) from None


@contextmanager
def invalid_settings() -> Iterator[None]:
    """Convert a validation error into a configuration error that names the option."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        option = _option_name(problem["loc"])
        raise ConfigurationError(problem["msg"], field=f"--{option}") from error


def _option_name(location: tuple[int | str, ...]) -> str:
    """Return the option of a field; fields nest (`calibration.samples`), options do not."""
    fields = [part for part in location if isinstance(part, str)]
    renamed = [_OPTION_BY_FIELD[field] for field in fields if field in _OPTION_BY_FIELD]
    return renamed[0] if renamed else fields[-1].replace("_", "-")
