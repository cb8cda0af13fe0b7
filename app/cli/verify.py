"""`intraslice verify`: whether a checkpoint's files are those that were published, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.adapters.artifact_signatures import require_signature
from app.cli.refusals import explained
from intraslice_core.checkpoints.manifest import MANIFEST, SIGNATURE, require_manifest
from intraslice_core.errors import ManifestError


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    directory: Annotated[Path, typer.Argument(help="A downloaded or compressed checkpoint.")],
    public_key: Annotated[
        Path | None, typer.Option(help="PEM of the deployment's key: the signature must be by it.")
    ] = None,
) -> None:
    """Compare a checkpoint's files with its manifest, and the manifest with its signature."""
    with explained():
        files = require_manifest(directory)
        if public_key is not None:
            _require_signed(directory, public_key)
    signed = "" if public_key is None else ", and the signature is by the key"
    typer.echo(f"{directory}: {files} files are as {MANIFEST} says{signed}")


def _require_signed(directory: Path, public_key: Path) -> None:
    file = directory / SIGNATURE
    if not file.is_file():
        raise ManifestError(
            f"{directory} has no {SIGNATURE}", hint="the deployment that made it signs nothing"
        )
    content = (directory / MANIFEST).read_bytes()
    require_signature(content, file.read_text(encoding="ascii", errors="replace"), public_key)
