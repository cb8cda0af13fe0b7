"""`intraslice report`: an HTML page of a compression, from its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.cli.errors import reported_errors
from intraslice_core.errors import ConfigurationError, OutputExistsError
from intraslice_core.files import atomic_file, require_writable_file
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(report)


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help=f"Directory of a compressed model, or its {REPORT_FILE}."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="HTML file to write.")] = Path(
        "report.html"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write an HTML page with the figures and plots of a compression."""
    from intraslice_core.reports.page import report_page
    from intraslice_core.reports.page_contents import ReportPage

    with reported_errors():
        require_writable_file(out, "--out")
        page = report_page(ReportPage(report=_read(source)))
        if out.exists() and not force:
            raise OutputExistsError(
                f"{out} already exists", field="--out", hint="name another file, or add --force"
            )
        _write(page, out)
    typer.echo(f"wrote {out}")


def _read(source: Path) -> CompressionReport:
    """Read the report from a file or from a checkpoint's directory.

    Raises:
        ConfigurationError: if the file cannot be read or is not a report.
    """
    file = source / REPORT_FILE if source.is_dir() else source
    hint = f"name a compressed model's directory or its {REPORT_FILE}"
    try:
        return CompressionReport.model_validate_json(file.read_bytes())
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror}"
        raise ConfigurationError(reason, field="SOURCE", hint=hint) from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{file} is not a report of this version", field="SOURCE", hint=hint
        ) from error


def _write(page: str, out: Path) -> None:
    """Write the file atomically.

    Raises:
        ConfigurationError: if the file cannot be written.
    """
    try:
        with atomic_file(out) as partial:
            partial.write_text(page, encoding="utf-8")
            partial.chmod(0o644)
    except OSError as error:
        reason = f"{out} cannot be written: {error.strerror}"
        raise ConfigurationError(reason, field="--out") from error
