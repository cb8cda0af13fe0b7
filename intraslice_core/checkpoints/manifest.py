"""`manifest.json` of a finished checkpoint: every file with its SHA-256, and what made them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intraslice_core.errors import ManifestError
from intraslice_core.files import combined_sha256, file_sha256

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
"""An ed25519 signature of the manifest's bytes, in base64."""

MANIFEST_SCHEMA_VERSION = 2
"""Raised when a reader of older manifests would misread a newer one.

Version 1 called the method `intraslice_plus` "intraslice" and the method `intraslice` "paper".
"""
_PROGRAMS = ("intraslice", "torch", "transformers")


def program_versions() -> dict[str, str]:
    """Of the interpreter and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PROGRAMS}


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Describe what lies in a directory; the files come from there, the rest is said by the caller.

    Args:
        directory: the checkpoint, complete but for its manifest.
        facts: JSON values, such as settings.
    """
    files = [_described(directory, file) for file in _files(directory)]
    about = {"schema_version": MANIFEST_SCHEMA_VERSION, "versions": program_versions()}
    text = json.dumps({**about, **facts, "files": files}, indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def require_manifest(directory: Path) -> int:
    """Compare a directory with its manifest.

    Returns:
        How many files it names.

    Raises:
        ManifestError: if there is none, or naming every file that is changed, missing or extra.
    """
    expected = _read(directory)
    found = {file.relative_to(directory).as_posix(): file for file in _files(directory)}
    faults = [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is not in the manifest" for name in sorted(found.keys() - expected.keys())),
        *_changed(expected, found),
    ]
    if faults:
        raise ManifestError(
            f"{directory} is not what its manifest says: {'; '.join(faults)}",
            hint="get the files again",
        )
    return len(expected)


def _files(directory: Path) -> list[Path]:
    """All but the manifest and its signature."""
    about = {directory / MANIFEST, directory / SIGNATURE}
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and path not in about]


def _described(directory: Path, file: Path) -> dict[str, Any]:
    return {
        "name": file.relative_to(directory).as_posix(),
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
    }


def _read(directory: Path) -> dict[str, str]:
    """SHA-256 by name."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        return {file["name"]: file["sha256"] for file in manifest["files"]}
    except FileNotFoundError as error:
        raise ManifestError(
            f"{directory} has no {MANIFEST}", hint="name a checkpoint that IntraSlice has made"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{directory}: {MANIFEST} cannot be read: {error}") from error


def _changed(expected: Mapping[str, str], found: Mapping[str, Path]) -> Iterator[str]:
    for name in sorted(expected.keys() & found.keys()):
        if file_sha256(found[name]) != expected[name]:
            yield f"{name} is changed"


def model_fingerprint(directory: Path) -> str:
    """SHA-256 over names and digests of a checkpoint's config and files of weights.

    Copies of a model have the same one wherever they lie; of a GGUF file it is that of the
    checkpoint that it is opened as.

    Returns:
        64 hexadecimal digits.
    """
    return combined_sha256([directory / "config.json", *directory.glob("*.safetensors")])
