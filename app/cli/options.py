"""Options that several engine commands take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from intraslice_core.config import (
    Allocation,
    CompressionConfig,
    ComputeDtype,
    EvaluationConfig,
    Method,
    RecoveryConfig,
    RecoveryLoss,
    Target,
)
from intraslice_core.errors import ConfigurationError

DEFAULT = CompressionConfig()
DEFAULT_EVALUATION = EvaluationConfig()
DEFAULT_RECOVERY = RecoveryConfig()

ModelArgument = Annotated[
    str, typer.Argument(help="Directory, .gguf file, hub:ORG/NAME[@REVISION] or package:NAME.")
]
TargetOption = Annotated[
    Target,
    typer.Option(
        help="research: shapes of each layer's own; adaptive: DeciLM, for vLLM and llama.cpp; "
        "stock: the dense class."
    ),
]
ExportOption = Annotated[
    list[str] | None,
    typer.Option("--exports", help="Files beside safetensors: gguf-f16, gguf-q8_0; repeatable."),
]
MethodOption = Annotated[Method, typer.Option(help="How to compress.")]
AllocationOption = Annotated[
    Allocation, typer.Option(help="Who decides how much is removed where.")
]
ModuleCapOption = Annotated[
    float, typer.Option(help="Fraction of one module that is removed at most.")
]
AttentionBiasOption = Annotated[
    float, typer.Option(help="In fisher allocations: above 1 spares attention.")
]
CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[=WEIGHT]",
        help="pydoc, pycode, self, chat, hub:DATASET[:CONFIG][@SPLIT] or a text file; "
        "several are a mixture.  [default: pydoc, pycode, chat and self in equal parts]",
    ),
]
SamplesOption = Annotated[int, typer.Option(help="Calibration sequences.")]
SequenceLengthOption = Annotated[int, typer.Option(help="Tokens a sequence.")]
SeedOption = Annotated[int, typer.Option(help="Of every choice.")]
DtypeOption = Annotated[ComputeDtype, typer.Option(help="Compute dtype.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
BatchSizeOption = Annotated[int, typer.Option(help="Sequences at once.")]
RoundToOption = Annotated[int, typer.Option(help="Dimensions are multiples of this.")]
EvaluateOption = Annotated[
    list[str] | None,
    typer.Option(help="Text to score both models on, named as for --calibration; repeatable."),
]
EvaluationOption = Annotated[bool, typer.Option(help="Measure quality and speed at all.")]
BenchmarkOption = Annotated[bool, typer.Option(help="Measure tokens/s of both models.")]
GateOption = Annotated[
    float | None, typer.Option(help="Refuse a result whose perplexity grew more than this.")
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="NAME,…",
        help='Zero-shot tasks of lm-evaluation-harness (pip install "intraslice[eval]").',
    ),
]
TaskLimitOption = Annotated[
    int | None, typer.Option("--limit", help="Examples of each task.  [default: all]")
]
TaskGateOption = Annotated[
    float | None, typer.Option(help="Refuse a result that keeps less than this of a task's score.")
]
SpeedGridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--speed-grid",
        metavar="BATCHxCONTEXT,…",
        help="Loads to measure speed, memory and cache under: 1x512,8x2048.",
    ),
]
OffloadOption = Annotated[
    Path | None,
    typer.Option(help="Keep hidden states in files there instead of in memory; nothing is left."),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Load the result in a clean process; takes memory for all of it in float32.",
    ),
]
RecoverOption = Annotated[
    RecoveryLoss | None,
    typer.Option(help="Train afterwards: to be as the dense model (distill), or on the text (ce)."),
]
RecoverTokensOption = Annotated[str, typer.Option(metavar="N", help="Trained on at most: 200K, …")]
RecoverSecondsOption = Annotated[float | None, typer.Option(help="Trained for at most.")]
RecoverRankOption = Annotated[int, typer.Option(help="Of the adapters that are trained.")]
RecoverSourceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[=WEIGHT]",
        help="Text to train on, named as for --calibration.  [default: the calibration's]",
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts", help="Text that both models continue, side by side in the report; repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def calibration_source(options: list[str] | None) -> Any:
    """One source as it is named; several, or one with a weight, as a mixture."""
    if not options:
        return DEFAULT.calibration.source
    mixture = [_weighted(option) for option in options]
    return options[0] if mixture == [{"source": options[0]}] else mixture


def exports(options: list[str] | None) -> tuple[str, ...]:
    """Safetensors, and what is asked for besides."""
    return ("safetensors", *(one for one in options or () if one != "safetensors"))


def recovery_settings(
    loss: RecoveryLoss | None,
    tokens: int | None,
    seconds: float | None,
    rank: int,
    sources: list[str] | None,
) -> dict[str, Any] | None:
    """What `recover` is to hold; None where nobody asked for it.

    `alpha` grows with the rank, so that adapters of any rank learn at one rate.
    """
    if loss is None:
        return None
    return {
        "loss": loss,
        "max_tokens": tokens,
        "max_seconds": seconds,
        "rank": rank,
        "alpha": DEFAULT_RECOVERY.alpha / DEFAULT_RECOVERY.rank * rank,
        "source": calibration_source(sources) if sources else None,
    }


def _weighted(option: str) -> dict[str, Any]:
    """`NAME=WEIGHT`; where no number follows the last `=`, all of it is a name."""
    name, _, weight = option.rpartition("=")
    try:
        return {"source": name, "weight": float(weight)} if name else {"source": option}
    except ValueError:
        return {"source": option}


def speed_grid(options: list[str] | None) -> list[dict[str, Any]]:
    """`8x2048` as a batch size and a context length.

    Raises:
        ConfigurationError: if one is written otherwise.
    """
    return [_load(option) for option in listed(options)]


def _load(option: str) -> dict[str, Any]:
    batch, _, context = option.partition("x")
    if not (batch.isdecimal() and context.isdecimal()):
        raise ConfigurationError(
            f"{option!r} is no load", field="--speed-grid", hint="write BATCHxCONTEXT: 8x2048"
        )
    return {"batch_size": int(batch), "context_length": int(context)}


def listed(options: list[str] | None) -> list[str]:
    """What is given several times, or with commas between."""
    parts = (part.strip() for option in options or () for part in option.split(","))
    return [part for part in parts if part]


def gate_settings(
    max_perplexity_ratio: float | None, min_task_ratio: float | None
) -> dict[str, Any] | None:
    """None where nothing is limited."""
    limits = {"max_perplexity_ratio": max_perplexity_ratio, "min_task_ratio": min_task_ratio}
    return limits if any(limit is not None for limit in limits.values()) else None


def evaluation_settings(
    texts: list[str] | None, benchmark: bool, gate: dict[str, Any] | None, **more: Any
) -> EvaluationConfig:
    """As the options say; `more` are fields of the settings."""
    return EvaluationConfig.model_validate(
        {
            "perplexity": texts or DEFAULT_EVALUATION.perplexity,
            "benchmark": benchmark,
            "gate": gate,
            **more,
        }
    )


def require_directory(place: Path | None, option: str) -> None:
    """Refuse before the work what could not be written to during it.

    Raises:
        ConfigurationError: naming the option.
    """
    if place is not None and place.exists() and not place.is_dir():
        raise ConfigurationError(
            f"{place} is a file", field=option, hint="name a directory, or one to be made"
        )
