"""Which dense model a result was made of, in one digest."""

from __future__ import annotations

import hashlib
from pathlib import Path


def model_fingerprint(directory: Path) -> str:
    """SHA-256 over names and digests of a checkpoint's config and files of weights.

    Copies of a model have the same one wherever they lie; of a GGUF file it is that of the
    checkpoint that it is opened as.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in sorted([directory / "config.json", *directory.glob("*.safetensors")]):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()
