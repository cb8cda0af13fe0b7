"""Model families the engine knows: one adapter each."""

from __future__ import annotations

from transformers import PreTrainedConfig

from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families.llama import LayerPlaces, LlamaFamily

FAMILIES = {family.model_type: family for family in (LlamaFamily(),)}
"""Adapters by transformers' `model_type`."""


def require_supported_type(model_type: str | None) -> LlamaFamily:
    """The adapter of a model type.

    Raises:
        UnsupportedArchitectureError: listing what is supported.
    """
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise UnsupportedArchitectureError(
            f"model type {model_type!r} is not supported",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    return family


def family_for(config: PreTrainedConfig) -> LlamaFamily:
    """The adapter of a model, by its configuration.

    Raises:
        UnsupportedArchitectureError: if there is none, or if the variant is not supported.
    """
    family = require_supported_type(config.model_type)
    family.require_supported(config)
    return family


__all__ = ["FAMILIES", "LayerPlaces", "LlamaFamily", "family_for", "require_supported_type"]
