"""`intraslice verify`: integrity and signature of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.errors import reported_errors
from intraslice_core.checkpoints.manifest import MANIFEST, SIGNATURE, require_manifest
from intraslice_core.errors import ManifestError


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    directory: Annotated[Path, typer.Argument(help="Downloaded or compressed checkpoint.")],
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the deployment's ed25519 public key; the signature must be valid "
            "under it.",
            show_default="the signature is not checked",
        ),
    ] = None,
) -> None:
    """Verify a checkpoint's checksums and, with --public-key, its signature."""
    with reported_errors():
        files = require_manifest(directory)
        if public_key is not None:
            _require_signed(directory, public_key)
    signature = "" if public_key is None else "; the signature is valid"
    typer.echo(f"{directory}: {files} files match {MANIFEST}{signature}")


def _require_signed(directory: Path, public_key: Path) -> None:
    """Raise if the manifest has no valid signature under the key.

    Raises:
        ManifestError: if there is no signature, or if it is invalid.
        ConfigurationError: if the file holds no public key.
    """
    from app.adapters.artifact_signatures import require_signature

    file = directory / SIGNATURE
    if not file.is_file():
        raise ManifestError(
            f"{directory} has no {SIGNATURE}", hint="its deployment does not sign manifests"
        )
    content = (directory / MANIFEST).read_bytes()
    require_signature(content, file.read_text(encoding="ascii", errors="replace"), public_key)
