"""Model families the engine knows: one adapter each, one architecture behind them."""

from __future__ import annotations

from transformers import PreTrainedConfig

from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families.family import Family
from intraslice_core.families.gemma import Gemma2Family, Gemma3Family
from intraslice_core.families.llama import LlamaFamily
from intraslice_core.families.mistral import MistralFamily
from intraslice_core.families.phi import Phi3Family, PhiFamily
from intraslice_core.families.qwen import Qwen2Family, Qwen3Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LlamaFamily(),
        MistralFamily(),
        Qwen2Family(),
        Qwen3Family(),
        PhiFamily(),
        Phi3Family(),
        Gemma2Family(),
        Gemma3Family(),
    )
}
"""Adapters by transformers' `model_type`."""


def require_supported_type(model_type: str | None) -> Family:
    """The adapter of a model type.

    Raises:
        UnsupportedArchitectureError: listing what is supported.
    """
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise UnsupportedArchitectureError(
            f"model type {model_type!r} is not supported",
            field="model",
            hint=f"supported: {', '.join(FAMILIES)}",
        )
    return family


def family_for(config: PreTrainedConfig) -> Family:
    """The adapter of a model, by its configuration.

    Raises:
        UnsupportedArchitectureError: if there is none, or if the variant is not supported.
    """
    family = require_supported_type(config.model_type)
    family.require_supported(config)
    return family


__all__ = ["FAMILIES", "Family", "family_for", "require_supported_type"]
