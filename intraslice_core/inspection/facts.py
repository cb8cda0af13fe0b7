"""How large a model is, and whether that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from intraslice_core.config import ModelLimits
from intraslice_core.errors import ModelTooLargeError
from intraslice_core.inspection.gguf_header import read_gguf_header
from intraslice_core.inspection.layout import (
    CONFIG_FILE,
    locate_tensors,
    read_json_object,
    require_small_settings,
)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the headers say; `bytes` is of the files that hold weights."""

    model_type: str | None
    parameters: int
    bytes: int


def inspect_model(place: Path) -> ModelFacts:
    """Read the headers of a directory of safetensors, or of a `.gguf` file.

    Raises:
        BrokenCheckpointError: if a header is not what it says it is.
    """
    if not place.is_dir():
        header = read_gguf_header(place)
        return ModelFacts(
            model_type=header.architecture,
            parameters=header.parameters,
            bytes=place.stat().st_size,
        )
    require_small_settings(place)
    model_type = read_json_object(place / CONFIG_FILE).get("model_type")
    file_of, entries = locate_tensors(place)
    return ModelFacts(
        model_type=model_type if isinstance(model_type, str) else None,
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        bytes=sum((place / file).stat().st_size for file in set(file_of.values())),
    )


def require_within(facts: ModelFacts, limits: ModelLimits) -> None:
    """Refuse a model that is larger than allowed.

    Raises:
        ModelTooLargeError: saying what was found and what is allowed.
    """
    for what, found, allowed in (
        ("parameters", facts.parameters, limits.max_parameters),
        ("bytes of weights", facts.bytes, limits.max_bytes),
    ):
        if allowed is not None and found > allowed:
            raise ModelTooLargeError(
                f"the model has {found} {what}, {allowed} are allowed", field="model"
            )
