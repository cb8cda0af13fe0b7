"""Location of a model on this machine: a directory of safetensors or a GGUF file; no torch."""

from __future__ import annotations

import re
from pathlib import Path

from intraslice_core.checkpoints.gguf.parts import model_key
from intraslice_core.checkpoints.weight_files import CONFIG_FILE
from intraslice_core.errors import ModelNotFoundError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", re.ASCII)
_HUB_ADDRESS = re.compile(
    # As a path, the address has lost one of the two slashes.
    r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w-][\w.-]*/[\w-][\w.-]*)"
    r"(?:/(?:tree|blob|resolve)/([\w.-]+)(?:/.*)?)?/?",
    re.ASCII,
)
_LISTED_AT_MOST = 5


def located(path: Path) -> Path:
    """Return the model at a path: a directory of safetensors or a GGUF file.

    A directory without config.json and safetensors stands for the GGUF file in it, if it holds one
    or the parts of one.

    Raises:
        ModelNotFoundError: if there is no model, or if there are several GGUF files.
    """
    if path.is_dir():
        return _gguf_file_in(path) or path
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path
    if path.exists():
        raise ModelNotFoundError(f"{path} is neither a directory nor a .gguf file", field="model")
    raise ModelNotFoundError(f"{path} does not exist", field="model", hint=_hub_hint(str(path)))


def _hub_hint(reference: str) -> str | None:
    """Return a suggestion if the path looks like the name or the address of a repository."""
    address = _HUB_ADDRESS.fullmatch(reference)
    if address is not None:
        name, revision = address.groups()
        return f"did you mean hub:{name}{f'@{revision}' if revision else ''}?"
    if _HUB_NAME.fullmatch(reference) is None:
        return None
    return f"did you mean hub:{reference}?"


def _gguf_file_in(directory: Path) -> Path | None:
    """Return the only GGUF model in a directory; None if it holds none or a safetensors model."""
    files = sorted(directory.glob("*.gguf"))
    if not files or (directory / CONFIG_FILE).exists() or any(directory.glob("*.safetensors")):
        return None
    models: dict[tuple[str, str | None], Path] = {}
    for file in files:
        models.setdefault(model_key(file), file)
    if len(models) == 1:
        return files[0]
    names = [file.name for file in models.values()]
    more = f" and {len(names) - _LISTED_AT_MOST} more" if len(names) > _LISTED_AT_MOST else ""
    raise ModelNotFoundError(
        f"{directory} holds {len(names)} GGUF models: {', '.join(names[:_LISTED_AT_MOST])}{more}",
        field="model",
        hint=f"give the path of one, such as {directory / names[0]}",
    )
