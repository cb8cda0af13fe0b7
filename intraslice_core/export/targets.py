"""Requirements of each target on shapes, methods and families; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from intraslice_core.config import (
    COMPRESSED_MODEL_TYPES,
    SUPPORTED_MODEL_TYPES,
    Allocation,
    CompressionSettings,
    Method,
    Target,
)
from intraslice_core.errors import ConfigurationError
from intraslice_core.methods import CONSTRAINED_ALLOCATIONS, METHODS, methods_for
from intraslice_core.plan import (
    ALL_DIMENSIONS,
    ATTENTION_DIMENSIONS,
    FREE,
    ONLY_DENSE,
    Dimension,
    Module,
    ShapeConstraint,
)

ONE_STEP = 0.02
"""Budget tolerance where all layers change together: one rounding step is large in small models."""

_DENSE_HEAD_DIM: Mapping[Dimension, int] = MappingProxyType(
    {"pairs": ONLY_DENSE, "value": ONLY_DENSE}
)
_DENSE_HEADS: Mapping[Dimension, int] = MappingProxyType({"heads": ONLY_DENSE})


@dataclass(frozen=True, kw_only=True)
class StockFamily:
    """Dimensions besides the MLP width that a family's class and llama.cpp let `stock` cut."""

    head_dim: bool = False
    """True if the class takes any head dim, and `longrope` gives the kept pairs their frequencies.

    All heads then keep the same rotary pairs.
    """
    gguf_head_dim: bool = False
    """True if llama.cpp takes a table of frequencies for the kept pairs."""
    heads: bool = False
    """True if query and KV heads may be cut, equally in all layers."""
    heads_divide_hidden_size: bool = False
    """True if the class rejects a number of query heads that does not divide the hidden size."""
    gguf: bool = True
    """True if GGUF files of the family are written, for an architecture in llama.cpp."""

    def describe(self) -> str:
        """Return the dimensions that are cut, with and without GGUF files, as a sentence part."""
        sizes = ["the MLP width", *(["heads"] if self.heads else [])]
        every = [*sizes, *(["the head dim"] if self.head_dim else [])]
        text = f"cuts {' and '.join(every)}"
        if not self.gguf:
            return f"{text}; no GGUF files"
        if self.head_dim == self.gguf_head_dim:
            return text
        return f"{text}; with GGUF files only {' and '.join(sizes)}"


STOCK_FAMILIES: Mapping[str, StockFamily] = MappingProxyType(
    {
        "llama": StockFamily(head_dim=True, gguf_head_dim=True),
        "mistral": StockFamily(head_dim=True, gguf_head_dim=True),
        "qwen2": StockFamily(head_dim=True, gguf_head_dim=True),
        "qwen3": StockFamily(head_dim=True, heads=True),
        "gemma2": StockFamily(head_dim=True, heads=True, heads_divide_hidden_size=True),
        "gemma3_text": StockFamily(head_dim=True, heads=True, heads_divide_hidden_size=True),
        # The attention of `qwen2_5_vl` takes its head dim from hidden size and heads.
        "qwen2_5_vl_text": StockFamily(),
        # `Phi3Config` requires as many longrope factors as hidden_size / heads has pairs;
        # `PhiConfig` has no head dim, and runtimes compute it from hidden size and heads.
        "phi3": StockFamily(),
        "phi": StockFamily(),
        "cohere": StockFamily(),
        "cohere2": StockFamily(),
        "exaone4": StockFamily(),
        "glm": StockFamily(gguf=False),
        "glm4": StockFamily(),
        "gpt_neox": StockFamily(),
        "granite": StockFamily(),
        "granitemoehybrid": StockFamily(gguf=False),
        "ministral3": StockFamily(gguf=False),
        "nemotron": StockFamily(),
        "olmo2": StockFamily(),
        "olmo3": StockFamily(gguf=False),
        "opt": StockFamily(gguf=False),
        "seed_oss": StockFamily(),
        "smollm3": StockFamily(),
        "stablelm": StockFamily(),
        "starcoder2": StockFamily(),
    }
)
"""Families of target `stock` by model type."""


_PARALLEL = "attention and MLP read the same hidden states and would need one basis"
_OUTPUT_NORMS = "norms of the modules' outputs have weights in the basis of the dense model"
_UNFOLDABLE = "biases of norms cannot be folded into projections without biases"
WITHOUT_SLICED_RESIDUAL: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("phi", "cohere", "cohere2", "gpt_neox"), _PARALLEL),
        **dict.fromkeys(("gemma2", "gemma3_text", "exaone4", "glm4", "olmo2"), _OUTPUT_NORMS),
        "olmo3": _OUTPUT_NORMS,
        **dict.fromkeys(("nemotron", "stablelm"), _UNFOLDABLE),
    }
)
"""Reason why the residual stream of a model type cannot be sliced, by model type."""
SLICED_RESIDUAL_TYPES = tuple(
    name for name in SUPPORTED_MODEL_TYPES if name not in WITHOUT_SLICED_RESIDUAL
)
"""Model types whose residual stream can be sliced (method `slicegpt`)."""


@dataclass(frozen=True, kw_only=True)
class TargetDemands:
    """Requirements of one target; the defaults are those of `research`."""

    shapes: ShapeConstraint = FREE
    model_types: tuple[str, ...] = SUPPORTED_MODEL_TYPES + COMPRESSED_MODEL_TYPES
    methods: tuple[Method, ...] = methods_for("research")
    allocations: tuple[Allocation, ...] = ("auto", "uniform", "fisher", "fisher_pca", "lagrangian")
    alike: bool = False
    """True if all heads of all layers keep the same rotary pairs."""
    cuts_heads: bool = True
    """True if heads may be removed."""
    removable: frozenset[Module] = frozenset({"attention", "mlp"})
    """Modules that may be removed from a layer."""
    gguf: bool = False
    """True if llama.cpp runs models of the target."""

    def constraint(self, removable: frozenset[Module]) -> ShapeConstraint:
        """Return the shape constraint with the modules that may be removed as a whole."""
        return replace(self.shapes, removable=removable & self.removable)


DEMANDS: Mapping[Target, TargetDemands] = MappingProxyType(
    {
        "research": TargetDemands(),
        "adaptive": TargetDemands(
            shapes=ShapeConstraint(
                multiples=MappingProxyType(dict.fromkeys(ATTENTION_DIMENSIONS, ONLY_DENSE)),
                attention_stays_in=frozenset({0}),
                tolerance=ONE_STEP,
            ),
            # DeciLM is a Llama, and its readers support biases on all four projections or on none.
            model_types=("llama", "mistral", "nemotron-nas"),
            methods=methods_for("adaptive"),
            allocations=CONSTRAINED_ALLOCATIONS,
            removable=frozenset({"attention"}),
            gguf=True,
        ),
        "stock": TargetDemands(
            shapes=ShapeConstraint(
                same_across_layers=ALL_DIMENSIONS,
                multiples=_DENSE_HEADS,
                qk_equals_value=True,
                tolerance=ONE_STEP,
            ),
            model_types=tuple(STOCK_FAMILIES),
            methods=methods_for("stock"),
            allocations=CONSTRAINED_ALLOCATIONS,
            alike=True,
            cuts_heads=False,
            gguf=True,
        ),
    }
)
"""Requirements by target, for any of its families."""


def demands_on(settings: CompressionSettings, model_type: str | None) -> TargetDemands:
    """Return the requirements of the target on a model type and its output files.

    Args:
        settings: of the compression; only target and exports are used.
        model_type: `model_type` of the dense model; None for any.
    """
    demands = DEMANDS[settings.target]
    family = STOCK_FAMILIES.get(model_type or "")
    if settings.target != "stock" or family is None:
        return demands
    cuts_head_dim = family.gguf_head_dim if settings.gguf_formats else family.head_dim
    multiples: dict[Dimension, int] = {} if family.heads else {**_DENSE_HEADS}
    if not cuts_head_dim:
        multiples |= _DENSE_HEAD_DIM
    return replace(
        demands,
        shapes=replace(
            demands.shapes,
            multiples=MappingProxyType(multiples),
            heads_divide_hidden_size=family.heads_divide_hidden_size,
        ),
        cuts_heads=family.heads,
        gguf=family.gguf,
    )


def require_target(settings: CompressionSettings, model_type: str) -> TargetDemands:
    """Return the requirements of the target after checking model type and settings against them.

    Raises:
        ConfigurationError: naming the unsupported setting and the supported values.
    """
    demands = demands_on(settings, model_type)
    if model_type not in demands.model_types:
        raise ConfigurationError(
            f"target {settings.target} does not support {model_type} models",
            field="compression.target",
            hint=f"it supports {', '.join(demands.model_types)}; target research supports all",
        )
    method = METHODS[settings.method]
    if model_type in COMPRESSED_MODEL_TYPES and not method.takes_compressed_models:
        raise ConfigurationError(
            f"method {settings.method} does not take a model that was compressed before",
            field="compression.method",
            hint=f"use {_joined(_taking_compressed(demands))}, or compress the original model",
        )
    if settings.method not in demands.methods:
        raise ConfigurationError(
            f"target {settings.target} does not support method {settings.method}",
            field="compression.method",
            hint=f"use {' or '.join(demands.methods)}, or target research",
        )
    if method.slices_residual and model_type in WITHOUT_SLICED_RESIDUAL:
        raise ConfigurationError(
            f"method {settings.method} does not support {model_type} models: "
            f"{WITHOUT_SLICED_RESIDUAL[model_type]}",
            field="compression.method",
            hint=f"it supports {', '.join(SLICED_RESIDUAL_TYPES)}; use another method, such as "
            "intraslice_plus",
        )
    _require_comparable_states(settings)
    if settings.allocation not in demands.allocations:
        raise ConfigurationError(
            f"target {settings.target} does not support allocation {settings.allocation}",
            field="compression.allocation",
            hint=f"use {' or '.join(demands.allocations)}, or target research",
        )
    if settings.allocation not in method.allocations:
        raise ConfigurationError(
            f"method {settings.method} does not support allocation {settings.allocation}",
            field="compression.allocation",
            hint=f"use {_joined(method.allocations)}, or method intraslice_plus",
        )
    _require_mask_training(settings)
    if settings.gguf_formats and not DEMANDS[settings.target].gguf:
        raise ConfigurationError(
            f"target {settings.target} has no GGUF export, because llama.cpp cannot run its models",
            field="compression.exports",
            hint="use target stock or adaptive, or remove the gguf exports",
        )
    if settings.gguf_formats and not demands.gguf:
        raise ConfigurationError(
            f"{model_type} models have no GGUF export",
            field="compression.exports",
            hint="remove the gguf exports",
        )
    return demands


def _require_comparable_states(settings: CompressionSettings) -> None:
    """Raise if a loss compares hidden states that the result has in other bases and widths.

    Raises:
        ConfigurationError: naming the loss.
    """
    if not METHODS[settings.method].slices_residual or settings.recover is None:
        return
    if settings.recover.loss_weights.hidden > 0.0:
        raise ConfigurationError(
            f"method {settings.method} cannot be combined with the loss hidden: the result's "
            "hidden states have other bases and widths than the dense model's",
            field="compression.recover.loss",
            hint="use loss distill or ce",
        )


def _require_mask_training(settings: CompressionSettings) -> None:
    """Raise if masks are to be trained that the method or the allocation does not use.

    Raises:
        ConfigurationError: naming the methods that train masks.
    """
    if settings.mask_training is None:
        return
    if not METHODS[settings.method].trains_masks:
        training = [name for name, method in METHODS.items() if method.trains_masks]
        raise ConfigurationError(
            f"method {settings.method} does not train masks",
            field="compression.mask_training",
            hint=f"leave out mask_training, or use method {_joined(training)}",
        )
    if settings.allocation == "lagrangian":
        raise ConfigurationError(
            "allocation lagrangian compares predicted losses, which trained masks do not give",
            field="compression.mask_training",
            hint="use allocation auto or uniform, or leave out mask_training",
        )


def _joined(names: Iterable[str]) -> str:
    return " or ".join(names)


def _taking_compressed(demands: TargetDemands) -> tuple[Method, ...]:
    """Return the target's methods that take the result of an earlier compression."""
    return tuple(name for name in demands.methods if METHODS[name].takes_compressed_models)


# -- runtimes ------------------------------------------------------------------------------------

LLAMA_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "norm_type": "rms",
        "gated_mlp": True,
        "hidden_act": "silu",
        "parallel_block": False,
        "input_norms": True,
        "output_norms": False,
        "qk_norm": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "mlp_output_bias": False,
        "lm_head_bias": False,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "position_rows": 0,
        "query_scaling": None,
        "rope_layers": None,
        "sliding_window": None,
        "residual_shortcuts": False,
    }
)
"""Settings of the IntraSlice decoder with which vLLM's Llama layers compute it."""
VLLM_TYPES = ("llama", "mistral", "qwen2", "seed_oss")
"""Model types whose usual settings are `LLAMA_SETTINGS`."""
_VLLM_ROPE_TYPES = ("default", "llama3")

_OWN_CODE = "transformers with the checkpoint's code"
IN_VLLM = "vLLM with the intraslice package"
SLOW_IN_VLLM = f"{IN_VLLM}, but maybe slower than the dense model (use target stock for vLLM)"
"""Runtime of `research` models that vLLM computes through its backend for transformers models."""
_RUNTIMES: Mapping[Target, tuple[str, ...]] = MappingProxyType(
    {
        "research": (_OWN_CODE,),
        "adaptive": (_OWN_CODE, "vLLM as DeciLM"),
        "stock": ("every runtime that loads the dense model's class",),
    }
)


def has_llama_settings(settings: Mapping[str, Any]) -> bool:
    """Return whether vLLM's Llama layers compute a decoder with these settings and any shapes.

    Args:
        settings: of an `IntraSliceConfig`; missing ones are Llama's.
    """
    rope = settings.get("rope_parameters") or {}
    return (
        all(settings.get(name, value) == value for name, value in LLAMA_SETTINGS.items())
        and rope.get("rope_type", "default") in _VLLM_ROPE_TYPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


def runtimes(settings: CompressionSettings, decoder: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the runtimes that load the result of a compression.

    Args:
        settings: of the compression; only target and exports are used.
        decoder: settings of the dense decoder, as of an `IntraSliceConfig`.
    """
    names = _RUNTIMES[settings.target]
    # vLLM was not tried with shortcuts, and parts of the stream are in the transformers model only.
    if decoder.get("residual_shortcuts") or METHODS[settings.method].residual_parts:
        return names
    if settings.target == "research":
        return (*names, IN_VLLM if has_llama_settings(decoder) else SLOW_IN_VLLM)
    return (*names, "llama.cpp") if settings.gguf_formats else names
