"""Validation of a job before it runs: estimate, durations, targets and warnings."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.domain.resource import ApiModel
from intraslice_core.allocation.budget import compression_budget, resolve_round_to
from intraslice_core.allocation.residual_width import residual_plan, shortcut_warnings
from intraslice_core.config import (
    AUTO,
    CompressionConfig,
    EvaluationConfig,
    FrozenModel,
    Method,
)
from intraslice_core.context_length import beyond_context
from intraslice_core.cost_model import DenseModel, Estimate
from intraslice_core.export.targets import (
    DEMANDS,
    IN_VLLM,
    SLOW_IN_VLLM,
    STOCK_FAMILIES,
    VLLM_TYPES,
    StockFamily,
)
from intraslice_core.families.wrappers import describe_result
from intraslice_core.methods import METHODS
from intraslice_core.text_sources import IN_DOMAIN_ONLY_WARNING, WEB_DATASET, in_domain_only

_EXTREME_RATIO = 0.5
_TOKENS_A_DIMENSION = 4
"""Calibration tokens for each inner MLP dimension, below which the fit follows noise."""


class Caution(FrozenModel):
    """A warning about settings that does not prevent the job; `code` is stable."""

    code: str
    message: str


class TargetSupport(FrozenModel):
    """Support of a target for the model, and the runtimes that load its results."""

    target: str
    available: bool
    runtimes: tuple[str, ...]
    detail: str | None = None


class Duration(FrozenModel):
    """Estimated duration of the job on one class of machines, from the jobs they have finished."""

    device: str
    seconds_low: float = Field(
        description="Lower end of the range, as far from `seconds` as past jobs were from theirs: "
        "one in ten takes less."
    )
    seconds: float
    seconds_high: float = Field(description="Upper end of the range: one in ten takes longer.")
    jobs: int = Field(
        description="Finished jobs of the method on these machines; 0 if the estimate follows from "
        "other methods."
    )
    measured_at: datetime


class QueueForecast(FrozenModel):
    """Queue of the whole deployment, as a job would find it now."""

    jobs_ahead: int = Field(description="Queued jobs of all projects that would start before it.")
    seconds: float | None = Field(
        description="Estimated time until it starts; 0 while a device that can run it is free. "
        "Null where no registered worker can run it, where it or a job ahead needs several "
        "devices, while others are ahead and the workers have CPUs and GPUs and it cannot run on "
        "all of them, while more jobs are ahead than run on the devices that can run it, while the "
        "memory of their hosts is in use, and while jobs of other projects run on them, whose "
        "progress is not revealed."
    )


class TournamentPreview(FrozenModel):
    """Methods that `auto` would try before it compresses by the best of them."""

    candidates: tuple[Method, ...] = Field(
        description="Methods that enter the tournament; a single one is used without a trial."
    )
    excluded: dict[Method, str] = Field(description="Reasons of the other methods.")
    seconds: float | None = Field(
        description="Estimated duration of all trials on the machines of `seconds`; null if only a "
        "worker can read the model."
    )


class Validation(ApiModel):
    """A job that would be accepted, with estimates of its result, memory and duration.

    `estimate` is null if only a worker can read the model; `durations` has an entry for each class
    of machines that has finished a job, newest first.
    """

    object: Literal["validation"] = "validation"
    valid: Literal[True] = True
    estimate: Estimate | None
    gpu_bytes: int | None = Field(
        default=None,
        description="Memory that the job needs on a GPU, without evaluation and timing; null if "
        "only a worker can read the model. With less than the copies of second moments take, they "
        "are factorised in place.",
    )
    gpu_host_bytes: int | None = Field(
        default=None,
        description="Host memory that the job needs beside a GPU: hidden states that do not fit on "
        "it, their copies and a few layers, without verification and evaluation, which are on the "
        "host where the GPU is too small for them; null if only a worker can read the model.",
    )
    seconds_low: float | None = Field(
        default=None, description="Lower end of the range of `seconds`."
    )
    seconds: float | None = Field(
        description="Estimated duration on the machines that finished a job last; before any job, "
        "that of the cost model. Null if only a worker can read the model."
    )
    seconds_high: float | None = Field(
        default=None, description="Upper end of the range of `seconds`."
    )
    durations: tuple[Duration, ...]
    queue: QueueForecast | None = None
    targets: tuple[TargetSupport, ...]
    tournament: TournamentPreview | None = Field(
        default=None,
        description="Trials of method `auto`; null for other methods, and if only a worker can "
        "read the model. `seconds` is then that of the trials and of the slowest candidate.",
    )
    calibration_sources: tuple[str, ...] = Field(
        default=(),
        description="Sources of the calibration text, with that which the model writes itself.",
    )
    warnings: tuple[Caution, ...]


TARGETS = (
    TargetSupport(
        target="research",
        available=True,
        runtimes=("transformers",),
        detail="every layer has its own shape; the checkpoint brings the code that loads it",
    ),
    TargetSupport(
        target="adaptive",
        available=True,
        runtimes=("vLLM", "llama.cpp"),
        detail="layers differ only in the width of the MLP, as DeciLM and GGUF files can describe; "
        "for llama and mistral models",
    ),
    TargetSupport(
        target="stock",
        available=True,
        runtimes=("any that runs the original model",),
        detail="all layers have the same shape, so the result needs no code of its own",
    ),
)


def targets_for(dense: DenseModel | None) -> tuple[TargetSupport, ...]:
    """Return all targets; those that do not support the model's type are not available."""
    if dense is None or dense.facts.model_type is None:
        return TARGETS
    return tuple(_support_for(dense, support) for support in TARGETS)


def _support_for(dense: DenseModel, support: TargetSupport) -> TargetSupport:
    """Return a target's support for a model."""
    model_type = dense.target_type(support.target) or ""
    if support.available and model_type not in _model_types(support.target):
        detail = (
            f"target {support.target} does not support {model_type} models: set compression.target "
            "to research, which supports all"
        )
        return support.model_copy(update={"available": False, "detail": detail})
    if support.target == "research" and model_type in VLLM_TYPES:
        return support.model_copy(update={"runtimes": (*support.runtimes, IN_VLLM)})
    if support.target == "research":
        return support.model_copy(update={"detail": f"{support.detail}; {SLOW_IN_VLLM}"})
    if support.target == "stock":
        detail = f"{support.detail}; {_about_stock(STOCK_FAMILIES[model_type])}"
        return support.model_copy(update={"detail": detail})
    return support


def _about_stock(family: StockFamily) -> str:
    """Return what target stock cuts of a family, and what runtimes must then read."""
    if not family.head_dim:
        return family.describe()
    return (
        f"{family.describe()}; where the head dim is cut, config.json stores the frequencies of "
        "the remaining rotary pairs as rope_type longrope, which transformers and vLLM read"
    )


def _model_types(target: str) -> tuple[str, ...]:
    return {str(name): demands.model_types for name, demands in DEMANDS.items()}[target]


def cautions(
    dense: DenseModel | None, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> list[Caution]:
    """Return warnings about settings that are likely to give poor results."""
    warnings = [*_about_texts(compression, evaluation)]
    if compression.calibration.web_is_optional:
        message = (
            f"web text ({WEB_DATASET}) is part of the calibration if the worker can read it from "
            "the Hugging Face hub; the report says if it could not"
        )
        warnings.append(Caution(code="web_text_optional", message=message))
    if evaluation is not None and evaluation.tasks and evaluation.task_limit is None:
        message = "how many examples the tasks have is not known here: the time assumes 1,000 each"
        warnings.append(Caution(code="tasks_not_timed", message=message))
    if _ratio(dense, compression) > _EXTREME_RATIO:
        warnings.append(
            Caution(
                code="ratio_extreme",
                message=f"quality falls steeply when more than {_EXTREME_RATIO:.0%} is removed",
            )
        )
    if dense is not None and dense.wrapper is not None:
        message = describe_result(dense.wrapper, compression.target)
        warnings.append(Caution(code="multimodal", message=message))
    warnings += _about_method(dense, compression)
    warnings += _about_shortcuts(dense, compression)
    if dense is not None:
        warnings += _about_lengths(dense, compression, evaluation)
    return warnings


def _ratio(dense: DenseModel | None, compression: CompressionConfig) -> float:
    """Return the fraction to remove; 0 for a target size of a model that cannot be read here."""
    if compression.ratio is not None:
        return compression.ratio
    if dense is None or dense.geometry is None:
        return 0.0
    return compression_budget(compression, dense.geometry, dense.item_bytes).ratio


def _about_texts(
    compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> list[Caution]:
    sources = compression.seen_sources
    if evaluation is None:
        return [Caution(code="no_evaluation", message="the loss of quality will not be measured")]
    shared = set(sources).intersection(evaluation.perplexity)
    if any(source.startswith("/") for source in shared):
        message = "an evaluation text was also calibrated on; the result is likely optimistic"
        return [Caution(code="evaluation_is_calibration", message=message)]
    if not in_domain_only(sources, evaluation.perplexity):
        return []
    return [Caution(code="evaluation_of_same_kind", message=IN_DOMAIN_ONLY_WARNING)]


def _about_method(dense: DenseModel | None, compression: CompressionConfig) -> list[Caution]:
    """Return a warning if the target has no biases for a method that compensates by them."""
    units = None if compression.method == AUTO else METHODS[compression.method].units
    if units is None or not units.bias_compensation or compression.target == "research":
        return []
    if dense is not None and dense.geometry is not None and dense.geometry.mlp_bias:
        return []
    message = (
        f"{compression.method} compensates by biases of output projections, which target "
        f"{compression.target} has only where the dense model has them: use target research for "
        "the published method"
    )
    return [Caution(code="no_bias_compensation", message=message)]


def _about_shortcuts(dense: DenseModel | None, compression: CompressionConfig) -> list[Caution]:
    """Return a warning if the matrices on residual connections cost more than they are worth."""
    geometry = None if dense is None else dense.geometry
    if geometry is None or not METHODS[compression.method].slices_residual:
        return []
    step = resolve_round_to(compression, geometry)
    # The budget was checked before, within its own tolerance.
    plan = residual_plan(geometry, _ratio(dense, compression), step, 1.0)
    return [
        Caution(code="shortcuts_costly", message=message)
        for message in shortcut_warnings(geometry, plan)
    ]


def _about_lengths(
    dense: DenseModel, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> list[Caution]:
    calibration = compression.calibration
    warnings: list[Caution] = []
    tokens = calibration.samples * calibration.sequence_length
    refits = compression.method == AUTO or METHODS[compression.method].compensate
    if dense.geometry is not None and refits:
        wanted = _TOKENS_A_DIMENSION * dense.geometry.intermediate_size
        if tokens < wanted:
            warnings.append(
                Caution(
                    code="calibration_short",
                    message=f"{tokens} calibration tokens for {dense.geometry.intermediate_size} "
                    f"inner dimensions fit noise: give at least {wanted}",
                )
            )
    too_long = beyond_context(dense.max_positions, compression, evaluation)
    return warnings + [Caution(code="sequences_long", message=message) for message in too_long]
