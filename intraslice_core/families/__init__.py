"""Supported model families: one table per family, all mapped to one canonical architecture.

`llama.py` is the example for a new family. Importing this package loads neither torch nor
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families.cohere import Cohere2Family, CohereFamily
from intraslice_core.families.compressed import AdaptiveFamily, ResearchFamily
from intraslice_core.families.exaone import Exaone4Family
from intraslice_core.families.family import Family
from intraslice_core.families.gemma import Gemma2Family, Gemma3Family
from intraslice_core.families.glm import Glm4Family, GlmFamily
from intraslice_core.families.gpt_neox import GPTNeoXFamily
from intraslice_core.families.granite import Granite4Family, GraniteFamily
from intraslice_core.families.llama import LlamaFamily
from intraslice_core.families.mistral import Ministral3Family, MistralFamily
from intraslice_core.families.nemotron import NemotronFamily
from intraslice_core.families.olmo import Olmo2Family, Olmo3Family
from intraslice_core.families.opt import OPTFamily
from intraslice_core.families.phi import Phi3Family, PhiFamily
from intraslice_core.families.qwen import Qwen2Family, Qwen3Family
from intraslice_core.families.seed_oss import SeedOssFamily
from intraslice_core.families.smollm import SmolLM3Family
from intraslice_core.families.stablelm import StableLmFamily
from intraslice_core.families.starcoder import Starcoder2Family
from intraslice_core.families.wrappers import unsupported_kind

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
        CohereFamily(),
        Cohere2Family(),
        Exaone4Family(),
        GlmFamily(),
        Glm4Family(),
        GPTNeoXFamily(),
        GraniteFamily(),
        Granite4Family(),
        Ministral3Family(),
        NemotronFamily(),
        Olmo2Family(),
        Olmo3Family(),
        OPTFamily(),
        SeedOssFamily(),
        SmolLM3Family(),
        StableLmFamily(),
        Starcoder2Family(),
    )
}
"""Family tables by transformers' `model_type`."""

COMPRESSED_FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (ResearchFamily(), AdaptiveFamily())
}
"""Tables of results of earlier compressions, by `model_type`."""


def require_supported_type(
    model_type: str | None, settings: Mapping[str, Any] | None = None
) -> Family:
    """Return the table of a model type.

    Args:
        model_type: of the model.
        settings: content of config.json, from which the error tells the kind of the model.

    Raises:
        UnsupportedArchitectureError: listing the supported model types.
    """
    name = model_type if isinstance(model_type, str) else ""  # config.json may hold any value
    family = (FAMILIES | COMPRESSED_FAMILIES).get(name)
    if family is None:
        kind = unsupported_kind(settings or {})
        raise UnsupportedArchitectureError(
            f"model type {model_type!r} is not supported" + (f": it is {kind}" if kind else ""),
            field="model",
            hint=f"supported: {', '.join(FAMILIES)}",
        )
    return family


__all__ = ["COMPRESSED_FAMILIES", "FAMILIES", "Family", "require_supported_type"]
