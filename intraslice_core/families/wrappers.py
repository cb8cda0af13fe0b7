"""Multimodal wrappers: models around a language model of a supported family.

Only the language model is compressed. A `Wrapper` says where its settings and tensors are in the
wrapper's checkpoint. The names are those in transformers' module `conversion_mapping`. This module
imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from intraslice_core.config import CompressionConfig, Target
from intraslice_core.errors import ConfigurationError, UnsupportedArchitectureError


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """Table of one wrapper's `model_type`."""

    model_type: str
    """`model_type` in the wrapper's config.json."""
    title: str
    """Name of the wrapper's models for readers."""
    text_types: Mapping[str, str]
    """Supported families by the `model_type` of the text configuration."""
    default_text_type: str
    """`model_type` of a text configuration that names none."""
    tied: bool
    """Value of `tie_word_embeddings` that the configuration class assumes."""
    prefixes: tuple[tuple[str, str], ...]
    """Prefixes of the language model's tensors in the wrapper, each with that of the text model."""
    other_prefixes: tuple[str, ...] = ()
    """Prefixes of tensors outside the language model that `prefixes` would match, too."""
    ignored: Mapping[str, Any] = field(default_factory=dict)
    """Values of text settings that the wrapper's class does not read."""
    stock_type: str | None = None
    """Row of `STOCK_FAMILIES` in place of the family's, for classes that differ from it."""

    def text_name(self, stored: str) -> str | None:
        """Return the text model's name of a stored tensor, None outside the language model."""
        if stored.startswith(self.other_prefixes):
            return None
        for prefix, text_prefix in self.prefixes:
            if stored.startswith(prefix):
                return text_prefix + stored.removeprefix(prefix)
        return None

    def target_type(self, target: str, text_type: str) -> str:
        """Return the model type that decides what a target supports."""
        return self.stock_type or text_type if target == "stock" else text_type


_LLAVA_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)
"""Names that transformers writes, those of a base model, and those in memory."""

WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        wrapper.model_type: wrapper
        for wrapper in (
            Wrapper(
                model_type="gemma3",
                title="Gemma 3 with vision",
                text_types=MappingProxyType({"gemma3_text": "gemma3_text"}),
                default_text_type="gemma3_text",
                ignored=MappingProxyType({"final_logit_softcapping": None}),
                tied=True,
                prefixes=_LLAVA_PREFIXES,
            ),
            Wrapper(
                model_type="mistral3",
                title="Mistral Small 3.1 and Ministral 3 with vision",
                text_types=MappingProxyType({"mistral": "mistral", "ministral3": "ministral3"}),
                default_text_type="mistral",
                tied=True,
                prefixes=_LLAVA_PREFIXES,
            ),
            Wrapper(
                model_type="qwen2_5_vl",
                title="Qwen 2.5 VL",
                # All sections of the rotary embedding have the same positions for text alone.
                text_types=MappingProxyType({"qwen2_5_vl_text": "qwen2", "qwen2_5_vl": "qwen2"}),
                default_text_type="qwen2_5_vl_text",
                tied=False,
                prefixes=(
                    ("model.language_model.", "model."),
                    ("model.", "model."),
                    ("lm_head.", "lm_head."),
                ),
                other_prefixes=("model.visual.", "visual."),
                stock_type="qwen2_5_vl_text",
            ),
        )
    }
)
"""Tables of the supported wrappers by `model_type`."""


def wrapper_of(settings: Mapping[str, Any]) -> Wrapper | None:
    """Return the table of the wrapper that a config.json describes, None for other models."""
    model_type = settings.get("model_type")
    return WRAPPERS.get(model_type) if isinstance(model_type, str) else None


def text_settings(wrapper: Wrapper, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the language model as its family names them.

    Older Qwen 2.5 VL checkpoints have them beside those of the wrapper, without `text_config`.

    Args:
        wrapper: table of the wrapper.
        settings: content of the wrapper's config.json.

    Raises:
        UnsupportedArchitectureError: if the language model is of no supported family.
    """
    section = settings.get("text_config")
    text = dict(section if isinstance(section, Mapping) else settings)
    text_type = text.get("model_type") or wrapper.default_text_type
    if not isinstance(text_type, str) or text_type not in wrapper.text_types:
        raise UnsupportedArchitectureError(
            f"{wrapper.model_type} models with a text_config of model type {text_type!r} are not "
            "supported",
            field="model",
            hint=f"supported: {', '.join(wrapper.text_types)}",
        )
    text["model_type"] = wrapper.text_types[text_type]
    outer_dtype = settings.get("dtype") or settings.get("torch_dtype")
    text["dtype"] = outer_dtype or text.get("dtype") or text.get("torch_dtype")
    tied = settings.get("tie_word_embeddings", wrapper.tied)
    # Configurations of Qwen 2.5 VL before transformers 5 have it in the text configuration alone.
    text["tie_word_embeddings"] = tied or (
        not wrapper.tied and bool(text.get("tie_word_embeddings"))
    )
    return text


def describe_result(wrapper: Wrapper, target: Target) -> str:
    """Return a sentence on what is compressed and written, for estimates and reports."""
    beginning = f"{wrapper.model_type} is a multimodal model: only its language model is compressed"
    counted = "ratio, sizes and counts are those of the language model"
    if target == "stock":
        return (
            f"{beginning}, and the result is the whole model with all other tensors copied "
            f"unchanged; {counted}"
        )
    return (
        f"{beginning}, and the result of target {target} is the language model alone, without "
        f"vision; {counted}"
    )


def require_wrapper_budget(config: CompressionConfig, wrapper: Wrapper | None) -> None:
    """Raise if a size of the whole model is to be met by compressing a part of it.

    Raises:
        ConfigurationError: naming the field, for target `stock` of a wrapper.
    """
    if wrapper is None or config.target != "stock" or config.ratio is not None:
        return
    raise ConfigurationError(
        f"{config.budget_field} is not supported for target stock of {wrapper.model_type} models: "
        "the result has tensors that are not compressed",
        field=f"compression.{config.budget_field}",
        hint="give a ratio, which counts the language model alone, or use target research",
    )


def unsupported_kind(settings: Mapping[str, Any]) -> str | None:
    """Return the reason why models of an unknown type cannot be supported, if one is visible.

    Args:
        settings: content of config.json.
    """
    section = settings.get("text_config")
    text = section if isinstance(section, Mapping) else {}
    experts = next(
        (
            name
            for name in ("num_local_experts", "num_experts", "n_routed_experts")
            for values in (settings, text)
            if type(values.get(name)) is int and values[name] > 1
        ),
        None,
    )
    if str(settings.get("model_type")).startswith("llama4") or experts is not None:
        return "a mixture of experts, and only dense layers are supported"
    if settings.get("is_encoder_decoder") is True:
        return "an encoder-decoder model, and only decoders are supported"
    if "vision_config" in settings or "audio_config" in settings:
        return f"a multimodal model; the supported ones are {', '.join(WRAPPERS)}"
    return None
