"""Facts about a finished checkpoint on this machine's disk, for registries and hubs."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from app.domain.registry_hand_off import CheckpointFacts
from intraslice_core.checkpoints.manifest import MANIFEST, require_manifest
from intraslice_core.errors import ManifestError
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport


def read_facts(directory: Path) -> tuple[CheckpointFacts, CompressionReport]:
    """Return the facts of a checkpoint, after comparing all of its files with its manifest.

    Raises:
        ManifestError: if a file is not what the manifest says, or the report cannot be read.
    """
    require_manifest(directory)
    try:
        report = CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ManifestError(
            f"{directory}: {REPORT_FILE} cannot be read",
            hint="name a checkpoint that this version has made",
        ) from error
    return CheckpointFacts.of((directory / MANIFEST).read_bytes(), report), report
