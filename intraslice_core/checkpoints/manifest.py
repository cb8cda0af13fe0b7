"""Manifest and fingerprint of a checkpoint: the identity of its files by their SHA-256 digests.

`manifest.json` of a compressed checkpoint lists every file with its digest, the settings and the
versions of the programs. The fingerprint identifies a dense model wherever its files are stored.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intraslice_core.checkpoints.weight_files import CONFIG_FILE, weight_files
from intraslice_core.errors import ManifestError
from intraslice_core.files import combined_sha256, file_sha256

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
"""File with the ed25519 signature of the manifest's bytes, in base64."""

MANIFEST_SCHEMA_VERSION = 2
"""Version of the format; incremented when older readers would misread a newer manifest.

Version 1 called the method `intraslice_plus` "intraslice" and the method `intraslice` "paper".
"""
_PROGRAMS = ("intraslice", "torch", "transformers")


def program_versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the packages that affect a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PROGRAMS}


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a directory: its files, the given facts and the program versions.

    Args:
        directory: the checkpoint, complete except for its manifest.
        facts: additional JSON values, such as settings.
    """
    files = [_file_entry(directory, file) for file in _files(directory)]
    about = {"schema_version": MANIFEST_SCHEMA_VERSION, "versions": program_versions()}
    text = json.dumps({**about, **facts, "files": files}, indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def require_manifest(directory: Path) -> int:
    """Raise if a directory differs from its manifest.

    Returns:
        The number of files in the manifest.

    Raises:
        ManifestError: if there is no manifest, or naming the files that are changed, missing or
            not listed.
    """
    expected = _read(directory)
    files = {file.relative_to(directory).as_posix(): file for file in _files(directory)}
    differences = [
        *(f"{name} is missing" for name in sorted(expected.keys() - files.keys())),
        *(f"{name} is not in the manifest" for name in sorted(files.keys() - expected.keys())),
        *_changed(expected, files),
    ]
    if differences:
        raise ManifestError(
            f"{directory} does not match its manifest: {'; '.join(differences)}",
            hint="download or copy the files again",
        )
    return len(expected)


def _files(directory: Path) -> list[Path]:
    """Return all files except the manifest and its signature."""
    about = {directory / MANIFEST, directory / SIGNATURE}
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and path not in about]


def _file_entry(directory: Path, file: Path) -> dict[str, Any]:
    return {
        "name": file.relative_to(directory).as_posix(),
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
    }


def _read(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the manifest, by name."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        return {file["name"]: file["sha256"] for file in manifest["files"]}
    except FileNotFoundError as error:
        raise ManifestError(
            f"{directory} has no {MANIFEST}", hint="give a checkpoint written by IntraSlice"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{directory}: {MANIFEST} cannot be read: {error}") from error


def _changed(expected: Mapping[str, str], files: Mapping[str, Path]) -> Iterator[str]:
    for name in sorted(expected.keys() & files.keys()):
        if file_sha256(files[name]) != expected[name]:
            yield f"{name} is changed"


def model_fingerprint(directory: Path) -> str:
    """Return one SHA-256 over the names and digests of a checkpoint's config and weight files.

    Copies of a model have the same fingerprint wherever they are stored. A GGUF file has the
    fingerprint of the checkpoint that it is converted to.

    Returns:
        64 hexadecimal digits.
    """
    names = (CONFIG_FILE, *weight_files(directory).names)
    return combined_sha256([directory / name for name in names])
